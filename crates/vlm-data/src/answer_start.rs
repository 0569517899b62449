//! Finds where an answer begins in a rendered prompt: after the header that the template writes, and with
//! the thinking block that it opens.

use std::ops::Range;

use crate::mark_positions::{MarkPositions, refused, turn_name};
use crate::marks::Conversation;
use crate::reject::Reject;
use crate::rows::{Role, Turn};
use crate::template::ChatTemplate;
use crate::template_profile::{Opening, TemplateProfile};

/// Opens a thinking block. A block that a template writes before the text of an answer belongs to
/// the answer, even if the generation prompt writes an empty one.
const THINK: &str = "<think>";

/// Where the answer of turn `k` begins in the rendering. `around` is from the end of the previous
/// text to the end of the answer.
pub(crate) fn answer_start(
    template: &ChatTemplate,
    profile: &TemplateProfile,
    conversation: &Conversation,
    places: &MarkPositions,
    k: usize,
    around: Range<usize>,
) -> Result<usize, Reject> {
    let text = &places.text;
    let of_text = places.turn(k).0;
    let asked = Conversation { turns: &conversation.turns[..k], ..*conversation };
    let mut prompt = None;
    if profile.opening == Opening::GenerationPrompt || of_text.is_none() {
        prompt = template.render(&asked.plain(), true).ok();
    }
    let prompt = prompt.as_deref();
    let is_prompt = |prompt: &&str| text[..around.end].starts_with(*prompt);
    let generated = prompt.filter(is_prompt).map(str::len);
    let start = match (profile.opening, generated, of_text) {
        (Opening::GenerationPrompt, Some(generated), _) => Some(generated),
        (Opening::WithText, _, Some(of_text)) => Some(before_spaces(text, of_text)),
        (_, _, Some(of_text)) => Some(of_text),
        _ => start_of_plain_answer(template, &asked, text).or_else(|| {
            // The generation prompt may open a thinking block that the answer does not have, or
            // another one.
            let header = &prompt?[..prompt?.rfind(THINK)?];
            text.starts_with(header).then_some(header.len())
        }),
    };
    let start = start.filter(|start| (around.start..=around.end).contains(start));
    let start = start.ok_or_else(|| {
        refused(format!(
            "the chat template rewrites the beginning of {}, and its generation prompt does not \
             tell where the answer begins",
            turn_name(conversation, k)
        ))
    })?;
    let opened = text[around.start..start].rfind(THINK);
    Ok(opened.map_or(start, |at| around.start + at))
}

/// The position before the spaces that end at `byte`. Most tokenizers make one token of a space and
/// the word after it, so that a space at the end of a header belongs to the answer.
pub(crate) fn before_spaces(text: &str, byte: usize) -> usize {
    text[..byte].trim_end_matches(' ').len()
}

/// Where an answer that no template rewrites would begin if it followed the turns of `asked`.
fn start_of_plain_answer(
    template: &ChatTemplate,
    asked: &Conversation,
    text: &str,
) -> Option<usize> {
    let mut turns = asked.turns.to_vec();
    turns.push(Turn::new(Role::Assistant, "Yes"));
    let answered = Conversation { turns: &turns, ..*asked };
    let places = MarkPositions::find(template, &answered, false).ok()?;
    let start = places.turn(turns.len() - 1).0?;
    (places.text.get(..start) == text.get(..start)).then_some(start)
}
