//! Rows with a list of turns: ShareGPT's and LLaVA's `conversations`, OpenAI's `messages`,
//! the_cauldron's `texts`, and pairs of a question and an answer.

use std::sync::Once;

use serde_json::Value;
use vlm_display::count;

use super::context::{FormContext, is_rating};
use super::parts::{self, PartImages};
use super::{image_value, keys, roles};
use crate::record::{Field, Record, is_key, shown};
use crate::reject::{Reject, RejectReason};
use crate::rows::{IMAGE_TAG, Role, Turn};

/// Keys that hold a list of turns.
pub(super) const LIST_KEYS: [&str; 10] = [
    "conversations", "conversation", "messages", "texts", "dialog", "dialogue", "dialogs", "turns",
    "chat", "conv",
];
/// Keys under which a turn has its role, and its content.
const ROLE_KEYS: [&str; 4] = ["role", "from", "speaker", "sender"];
const CONTENT_KEYS: [&str; 7] =
    ["content", "value", "text", "parts", "message", "utterance", "contents"];
/// Keys under which a row or its system turn has the functions that the assistant may call.
pub(super) const TOOL_KEYS: [&str; 2] = ["functions", "tools"];
/// Keys under which an object has a question, and its answer.
const QUESTION_KEYS: [&str; 6] = ["user", "human", "question", "query", "instruction", "prompt"];
const ANSWER_KEYS: [&str; 9] =
    ["assistant", "gpt", "bot", "model", "answer", "response", "output", "completion", "chatbot"];

/// The turns of `value`, which was found under `key`.
///
/// # Errors
/// A value that is not a list of turns; the message names the turn at fault.
pub(super) fn turns(
    value: &Field,
    key: &str,
    record: &Record,
    context: &FormContext<'_>,
    images: &mut PartImages,
) -> Result<Vec<Turn>, Reject> {
    match value {
        Field::List(items) if items.is_empty() => {
            Err(Reject::invalid_row(format!("\"{key}\" is empty")))
        }
        Field::List(items) => {
            let mut reader = Reader { key, record, context, images, turns: Vec::new() };
            for (index, item) in items.iter().enumerate() {
                reader.push(index, item)?;
            }
            if reader.turns.is_empty() {
                return Err(Reject::new(
                    RejectReason::RatingTooLow,
                    format!("every turn of \"{key}\" has a rating below `min_rating`"),
                ));
            }
            Ok(reader.turns)
        }
        Field::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => turns(&Field::Text(text.to_owned()), key, record, context, images),
            Err(_) => Err(Reject::invalid_row(format!("\"{key}\" is not UTF-8"))),
        },
        Field::Object(columns) => turns(&transposed(columns, key)?, key, record, context, images),
        Field::Text(text) => match Field::from_json(text) {
            Ok(list @ Field::List(_)) => turns(&list, key, record, context, images),
            // A whole row as text, which `turns_from_json` accepts.
            Ok(Field::Object(inner)) if inner.first_of(&LIST_KEYS).is_some() => {
                let (key, list) = inner.first_of(&LIST_KEYS).unwrap_or((key, &Field::Null));
                turns(list, key, &inner, context, images)
            }
            Ok(other) => Err(Reject::invalid_row(format!(
                "\"{key}\" should be a list of turns, but is {} as text",
                other.kind()
            ))),
            Err(problem) => Err(Reject::invalid_row(format!(
                "\"{key}\" should be a list of turns, but is a string ({}), {problem}",
                shown(text)
            ))),
        },
        other => Err(Reject::invalid_row(format!(
            "\"{key}\" should be a list of turns, but is {}",
            other.kind()
        ))),
    }
}

/// The list of turns in an object of lists, `{"from": ["human", "gpt"], "value": ["q", "a"]}`: the
/// form in which Hugging Face stores a sequence of objects.
fn transposed(columns: &Record, key: &str) -> Result<Field, Reject> {
    let mut rows: Vec<Record> = Vec::new();
    for (name, column) in &columns.0 {
        let Field::List(values) = column else {
            return Err(Reject::invalid_row(format!(
                "\"{key}\" should be a list of turns, but is an object with: {}",
                columns.keys()
            )));
        };
        if rows.is_empty() {
            rows.resize_with(values.len(), Record::default);
        }
        if rows.len() != values.len() {
            let turns = count(values.len(), "turn");
            let problem = format!("the lists of \"{key}\" differ: {} and {turns}", rows.len());
            return Err(Reject::invalid_row(problem));
        }
        for (row, value) in rows.iter_mut().zip(values) {
            row.0.push((name.clone(), value.clone()));
        }
    }
    Ok(Field::List(rows.into_iter().map(Field::Object).collect()))
}

/// The functions in a turn or a row, which are a list of objects, also as JSON text; `None` if there
/// are none.
///
/// # Errors
/// Another value.
pub(super) fn tools(record: &Record) -> Result<Option<Value>, Reject> {
    let Some((key, value)) = record.first_of(&TOOL_KEYS).filter(|(_, value)| !value.is_empty())
    else {
        return Ok(None);
    };
    let of_text = match value {
        Field::Text(text) => Field::from_json(text).ok(),
        _ => None,
    };
    match of_text.as_ref().unwrap_or(value).to_json() {
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Array(list)) if list.iter().all(Value::is_object) => {
            Ok(Some(Value::Array(list)))
        }
        _ => Err(Reject::invalid_row(format!(
            "\"{key}\" should be a list of functions, each an object, but is {}",
            value.kind()
        ))),
    }
}

struct Reader<'a, 'c> {
    key: &'a str,
    /// The row, which may have ratings beside its turns.
    record: &'a Record,
    context: &'a FormContext<'c>,
    images: &'a mut PartImages,
    turns: Vec<Turn>,
}

impl Reader<'_, '_> {
    fn push(&mut self, index: usize, item: &Field) -> Result<(), Reject> {
        match item {
            Field::Object(turn) => self.push_object(index, turn),
            // A pair of texts, as in `history`.
            Field::List(pair) if pair.len() == 2 => {
                self.push_text(Role::User, &pair[0], index, "question")?;
                self.push_text(Role::Assistant, &pair[1], index, "answer")
            }
            other => Err(Reject::invalid_row(format!(
                "turn {index} of \"{}\" should be an object, but is {}",
                self.key,
                other.kind()
            ))),
        }
    }

    fn push_object(&mut self, index: usize, turn: &Record) -> Result<(), Reject> {
        let role = turn.first_of(&ROLE_KEYS);
        if role.is_none() {
            let question = turn.first_of(&QUESTION_KEYS);
            let answer = turn.first_of(&ANSWER_KEYS);
            if question.is_some() || answer.is_some() {
                return self.push_pair(index, turn, question, answer);
            }
        }
        let role = match role {
            Some((_, Field::Text(name))) => roles::role(name).ok_or_else(|| {
                let name = shown(name);
                Reject::invalid_row(format!(
                    "turn {index} has the role {name:?}; expected one of: {}",
                    roles::KNOWN
                ))
            })?,
            Some((key, other)) => {
                let kind = other.kind();
                let problem = format!("\"{key}\" of turn {index} should be text, but is {kind}");
                return Err(Reject::invalid_row(problem));
            }
            None if self.turns.last().is_some_and(|turn| turn.role == Role::User) => {
                Role::Assistant
            }
            None => Role::User,
        };
        let calls = turn.first_of(&["tool_calls", "function_call"]);
        if calls.is_some_and(|(_, value)| !value.is_empty()) {
            static WARNED: Once = Once::new();
            WARNED.call_once(|| {
                tracing::warn!(
                    "rows with \"tool_calls\" are rejected; write the calls as text into the \
                     contents of their turns to train on them"
                );
            });
            return Err(Reject::invalid_row(format!(
                "turn {index} has \"tool_calls\", which are not supported; write the call as text \
                 into its content"
            )));
        }
        let Some((key, content)) = turn.first_of(&CONTENT_KEYS) else {
            let is_null = CONTENT_KEYS
                .iter()
                .any(|key| turn.0.iter().any(|(name, value)| is_key(name, key) && value.is_null()));
            let problem = if is_null {
                format!("the content of turn {index} is null; expected text, which may be empty")
            } else {
                format!("turn {index} has no \"content\"; it has: {}", turn.keys())
            };
            return Err(Reject::invalid_row(problem));
        };
        let what = format!("\"{key}\" of turn {index}");
        let num_before = self.images.len();
        let mut text = parts::text_of(content, &what, self.context, self.images)?;
        let shown_here = self.images_of_turn(index, turn)?;
        if !shown_here.is_empty() {
            if self.images.len() > num_before || role == Role::Assistant {
                return Err(Reject::ambiguous_images(format!(
                    "turn {index} has images both in its content and beside it, or is an \
                         answer with images; put the images under a key of the row"
                )));
            }
            let num_tags = text.matches(IMAGE_TAG).count();
            if num_tags == 0 {
                text.insert_str(0, &format!("{IMAGE_TAG}\n").repeat(shown_here.len()));
            } else if num_tags != shown_here.len() {
                return Err(Reject::placeholder_without_image(format!(
                    "turn {index} has {} but {num_tags} {IMAGE_TAG}",
                    count(shown_here.len(), "image")
                )));
            }
            self.images.extend(shown_here.into_iter().map(Some));
        }
        // As in MiniMind-V, functions are those of a system turn that begins the conversation.
        let is_opening = role == Role::System && self.turns.is_empty();
        let tools = if is_opening { tools(turn)? } else { None };
        self.turns.push(Turn { tools, ..Turn::new(role, text) });
        Ok(())
    }

    /// Images that a turn has beside its content, like the messages of Ollama.
    fn images_of_turn(
        &self,
        index: usize,
        turn: &Record,
    ) -> Result<Vec<crate::rows::RowImage>, Reject> {
        let mut images = Vec::new();
        for (key, value) in &turn.0 {
            let is_text = ROLE_KEYS.iter().chain(&CONTENT_KEYS).any(|known| is_key(key, known));
            if value.is_empty() || is_text {
                continue;
            }
            match keys::kind_of(key) {
                keys::KeyKind::Image => {
                    images.extend(image_value::images(value, key, self.context)?)
                }
                keys::KeyKind::OtherMedia => {
                    return Err(Reject::unsupported_media(format!("turn {index} has \"{key}\"")));
                }
                keys::KeyKind::Text => {}
            }
        }
        Ok(images)
    }

    fn push_pair(
        &mut self,
        index: usize,
        pair: &Record,
        question: Option<(&str, &Field)>,
        answer: Option<(&str, &Field)>,
    ) -> Result<(), Reject> {
        if !self.is_rated_enough(index, pair)? {
            return Ok(());
        }
        if let Some((key, text)) = question {
            self.push_text(Role::User, text, index, key)?;
        }
        if let Some((key, text)) = answer {
            self.push_text(Role::Assistant, text, index, key)?;
        }
        Ok(())
    }

    fn push_text(
        &mut self,
        role: Role,
        text: &Field,
        index: usize,
        key: &str,
    ) -> Result<(), Reject> {
        let what = format!("\"{key}\" of turn {index}");
        let text = parts::text_of(text, &what, self.context, self.images)?;
        self.turns.push(Turn::new(role, text));
        Ok(())
    }

    /// Whether pair `index` has no rating below the smallest allowed one. A pair without ratings is
    /// kept.
    fn is_rated_enough(&self, index: usize, pair: &Record) -> Result<bool, Reject> {
        for (name, least) in &self.context.options.min_ratings {
            let of = |record: &Record| {
                let is_it =
                    |(key, value): &&(String, Field)| is_rating(key, name) && !value.is_null();
                record.0.iter().find(is_it).map(|(_, value)| value.clone())
            };
            let rating = of(pair).or_else(|| match of(self.record) {
                Some(Field::List(ratings)) => ratings.get(index).cloned(),
                other => other,
            });
            match rating {
                Some(Field::Number(rating)) => {
                    if rating.as_f64().is_some_and(|rating| rating < *least) {
                        return Ok(false);
                    }
                }
                None | Some(Field::Null) => {}
                Some(other) => {
                    let kind = other.kind();
                    return Err(Reject::invalid_row(format!(
                        "the rating {name:?} should be a number, but is {kind}"
                    )));
                }
            }
        }
        Ok(true)
    }
}
