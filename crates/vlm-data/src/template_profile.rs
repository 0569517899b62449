//! Finds out how a chat template works by rendering a conversation of four short turns.

use std::ops::Range;

use crate::mark_positions::MarkPositions;
use crate::marks::{ContentForm, Conversation};
use crate::reject::Reject;
use crate::rows::{IMAGE_TAG, Role, Turn};
use crate::template::ChatTemplate;

/// How a template opens an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// The prompt ends where the text of the answer begins.
    AtText,
    /// The answer begins with the text of the generation prompt. There may be more text between that and the answer,
    /// which then belongs to the answer.
    GenerationPrompt,
    /// The answer begins with text that the template writes only together with an answer.
    WithText,
}

/// How a template works.
#[derive(Debug)]
pub(crate) struct TemplateProfile {
    pub(crate) form: ContentForm,
    pub(crate) opening: Opening,
}

/// A rendering of two questions with their answers.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) text: String,
    /// End of the text before the first question.
    pub(crate) first_question: usize,
    /// From the end of the first answer to the start of the second question.
    pub(crate) between: Range<usize>,
    /// End of the second answer.
    pub(crate) last_end: usize,
}

fn turns() -> [Turn; 4] {
    [
        Turn::new(Role::User, "Is it red"),
        Turn::new(Role::Assistant, "No"),
        Turn::new(Role::User, "Is it blue"),
        Turn::new(Role::Assistant, "Yes"),
    ]
}

impl TemplateProfile {
    /// Renders the conversation with each form of content, and takes the first form in which all
    /// texts are rendered.
    ///
    /// # Errors
    /// The template accepts no form: its error for plain text.
    pub(crate) fn find(
        template: &ChatTemplate,
        image_token: &str,
    ) -> Result<(Self, Probe), Reject> {
        let turns = turns();
        let as_text = Self::in_form(template, &turns, ContentForm::Text);
        if as_text.is_ok() {
            return as_text;
        }
        let form = match image_text(template) {
            Some(image_text) => {
                // Text around the image's token, such as <|vision_start|>, stays where it is.
                let mut tokens = image_text.match_indices(image_token);
                let core = match (tokens.next(), tokens.next()) {
                    (Some((at, token)), None) => at..at + token.len(),
                    _ => 0..image_text.len(),
                };
                ContentForm::Parts { image_text, core }
            }
            None => ContentForm::TextPart,
        };
        Self::in_form(template, &turns, form).or(as_text)
    }

    fn in_form(
        template: &ChatTemplate,
        turns: &[Turn],
        form: ContentForm,
    ) -> Result<(Self, Probe), Reject> {
        // The marks show where the texts are; that does not depend on the opening.
        let guess = Self { form: form.clone(), opening: Opening::AtText };
        let conversation = Conversation { turns, form: &form, image: "" };
        let places = MarkPositions::find(template, &conversation, false)?;
        let place = |turn| places.whole_text(&conversation, turn);
        let (first, answer, second, last) = (place(0)?, place(1)?, place(2)?, place(3)?);
        let mut openings = Vec::new();
        for (num_turns, start) in [(1, answer.start), (3, last.start)] {
            let asked = Conversation { turns: &turns[..num_turns], ..conversation };
            let with = template.render(&asked.plain(), true);
            let without = template.render(&asked.plain(), false);
            openings.push(match (with, without) {
                (Ok(with), Ok(without)) if with == without => {
                    match places.text[..start].strip_prefix(with.as_str()) {
                        Some("") => Opening::AtText,
                        // White space alone is not a header: it is the beginning of the answer.
                        Some(header) if header.trim().is_empty() => Opening::GenerationPrompt,
                        _ => Opening::WithText,
                    }
                }
                (Ok(with), _) if places.text.get(..start) == Some(with.as_str()) => Opening::AtText,
                (Ok(_), _) => Opening::GenerationPrompt,
                (Err(_), _) => Opening::WithText,
            });
        }
        let opening = match openings[..] {
            [first, second] if first == second => first,
            _ => Opening::GenerationPrompt,
        };
        let probe = Probe {
            text: places.text,
            first_question: first.start,
            between: answer.end..second.start,
            last_end: last.end,
        };
        Ok((Self { opening, ..guess }, probe))
    }
}

/// The text that a template writes for an image part, found by rendering a question with and
/// without an image.
fn image_text(template: &ChatTemplate) -> Option<String> {
    const QUESTION: &str = "Is it red";
    let form = ContentForm::Parts { image_text: String::new(), core: 0..0 };
    let words_before = |content: String| {
        let turns = [Turn::new(Role::User, content), Turn::new(Role::Assistant, "No")];
        let conversation = Conversation { turns: &turns, form: &form, image: "" };
        let rendered = template.render(&conversation.plain(), false).ok()?;
        let at = rendered.find(QUESTION)?;
        Some(rendered[..at].to_owned())
    };
    let without = words_before(QUESTION.to_owned())?;
    let with = words_before(format!("{IMAGE_TAG}{QUESTION}"))?;
    let same = common_prefix(&without, &with);
    let added = &with[same..];
    let added = added.strip_suffix(&without[same..]).unwrap_or(added).trim();
    (!added.is_empty()).then(|| added.to_owned())
}

/// Length in bytes of the common start of two texts.
pub(crate) fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// Length in bytes of the common end of two texts.
pub(crate) fn common_suffix(a: &str, b: &str) -> usize {
    let same = a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}
