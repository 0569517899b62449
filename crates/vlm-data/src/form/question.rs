//! Rows of a question and an answer, each under a key: query and response, question and answer,
//! instruction, input and output, prompt and completion.

use vlm_display::count;

use super::context::FormContext;
use super::parts::{self, PartImages};
use super::turns;
use crate::record::{Field, Record};
use crate::reject::Reject;
use crate::rows::{Role, Turn};

/// Keys of a question with the keys of an answer that go with them, the likeliest first.
pub(super) const PAIRS: [(&[&str], &[&str]); 7] = [
    (&["query", "question"], &["response", "answer", "answers", "multiple_choice_answer"]),
    (&["instruction"], &["output", "response", "answer", "completion"]),
    (&["prompt"], &["completion", "response", "answer", "output"]),
    (&["problem"], &["solution", "answer", "response", "output"]),
    (&["user", "human"], &["assistant", "gpt", "bot", "model"]),
    (&["input"], &["output", "response", "answer", "target"]),
    (&["question", "query"], &["output", "completion", "solution", "label"]),
];
/// Keys of text that belongs to the question and has no known position in it.
pub(super) const LEFT_OUT: [&str; 6] =
    ["choices", "options", "passage", "context", "hint", "multiple_choices"];
/// Keys of a system prompt.
pub(super) const SYSTEM_KEYS: [&str; 3] = ["system", "system_prompt", "system_message"];

/// A row's question and answer.
pub(super) struct Question<'a> {
    question: (&'a str, &'a Field),
    answer: (&'a str, &'a Field),
    record: &'a Record,
}

impl<'a> Question<'a> {
    /// The question of `record`, if it has one with an answer.
    pub(super) fn of(record: &'a Record) -> Option<Self> {
        PAIRS.iter().find_map(|(questions, answers)| {
            let question = record.first_of(questions)?;
            let answer = record.first_of(answers)?;
            Some(Self { question, answer, record })
        })
    }

    /// The keys that the text is read from.
    pub(super) fn keys(&self) -> Vec<&'a str> {
        let others = ["input", "history", "system", "system_prompt", "system_message"];
        let others = others.iter().filter_map(|key| Some(self.record.first_of(&[key])?.0));
        [self.question.0, self.answer.0].into_iter().chain(others).collect()
    }

    /// The two keys for a message: `query/response`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.question.0, self.answer.0)
    }

    /// The turns, those of `history` first. An `input` follows its instruction on a new line; of
    /// several answers to one question the first is used.
    ///
    /// # Errors
    /// Values that are not text; choices that the question would be asked without.
    pub(super) fn turns(
        &self,
        context: &FormContext<'_>,
        images: &mut PartImages,
    ) -> Result<Vec<Turn>, Reject> {
        let left_out = self.record.first_of(&LEFT_OUT).filter(|(_, value)| !value.is_empty());
        if let Some((key, _)) = left_out {
            return Err(Reject::invalid_row(format!(
                "the row has \"{key}\" beside its {}, which would be ignored; write it into the \
                 question",
                self.name()
            )));
        }
        let mut all = Vec::new();
        if let Some((key, history)) = self.record.first_of(&["history"])
            && !history.is_empty()
        {
            all = turns::turns(history, key, self.record, context, images)?;
        }
        let (key, question) = self.question;
        let (answer_key, answer) = self.answer;
        match (question, answer) {
            // Both are lists of turns, as TRL's prompt and completion.
            (Field::List(_), Field::List(_)) if holds_turns(question) && holds_turns(answer) => {
                all.extend(turns::turns(question, key, self.record, context, images)?);
                all.extend(turns::turns(answer, answer_key, self.record, context, images)?);
                return Ok(all);
            }
            // There are as many answers as questions, which alternate.
            (Field::List(questions), Field::List(answers)) => {
                if questions.len() != answers.len() || questions.is_empty() {
                    return Err(Reject::invalid_row(format!(
                        "{} under \"{key}\" but {} under \"{answer_key}\"",
                        count(questions.len(), "question"),
                        count(answers.len(), "answer")
                    )));
                }
                for (question, answer) in questions.iter().zip(answers) {
                    all.push(turn(Role::User, question, key, context, images)?);
                    all.push(turn(Role::Assistant, answer, answer_key, context, images)?);
                }
                return Ok(all);
            }
            _ => {}
        }
        let mut asked = turn(Role::User, question, key, context, images)?;
        let input = self.record.first_of(&["input"]).filter(|(name, _)| *name != key);
        if let Some((name, input)) = input.filter(|(_, input)| !input.is_empty()) {
            let input = parts::text_of(input, &format!("\"{name}\""), context, images)?;
            asked.content = format!("{}\n{input}", asked.content);
        }
        all.push(asked);
        all.push(turn(Role::Assistant, first_answer(answer), answer_key, context, images)?);
        Ok(all)
    }
}

fn turn(
    role: Role,
    text: &Field,
    key: &str,
    context: &FormContext<'_>,
    images: &mut PartImages,
) -> Result<Turn, Reject> {
    Ok(Turn::new(role, parts::text_of(text, &format!("\"{key}\""), context, images)?))
}

/// The first of several answers, as text or as `{"answer": …}`; VQA data sets have several.
fn first_answer(answer: &Field) -> &Field {
    match answer {
        Field::List(answers) => answers.first().map_or(answer, first_answer),
        Field::Object(record) => record.first_of(&["answer", "text"]).map_or(answer, |(_, a)| a),
        other => other,
    }
}

/// Whether the items of a list are turns, not parts or texts.
fn holds_turns(list: &Field) -> bool {
    let is_turn = |item: &Field| match item {
        Field::Object(record) => record.first_of(&["role", "from"]).is_some(),
        _ => false,
    };
    matches!(list, Field::List(items) if !items.is_empty() && items.iter().all(is_turn))
}
