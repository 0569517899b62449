//! Finds the positions of a conversation's texts in its prompt: the conversation is rendered with marks
//! around every text, and the positions of the marks are read from the rendering.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::marks::{Conversation, Enclosure};
use crate::reject::{Reject, RejectReason};
use crate::rows::Role;
use crate::template::ChatTemplate;

/// The positions that marks show in a rendering without them.
#[derive(Debug, Default)]
pub(crate) struct MarkPositions {
    /// The rendering without marks.
    pub(crate) text: String,
    /// Start and end of the segments of turns, by turn and segment; segments that the template
    /// dropped are missing.
    pub(crate) segments: BTreeMap<(usize, usize), (Option<usize>, Option<usize>)>,
    /// Images that are written into texts: number and position.
    pub(crate) images: Vec<(usize, Range<usize>)>,
    /// A turn whose text is rendered twice.
    pub(crate) repeated: Option<usize>,
}

impl MarkPositions {
    /// The rendering, with the positions of the marks in it.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`]: the template raises an error, repeats a text, or rewrites
    /// texts so that their positions are not known.
    pub(crate) fn find(
        template: &ChatTemplate,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Self, Reject> {
        let text = template.render(&conversation.plain(), add_generation_prompt)?;
        let mark = conversation.unused_char();
        for (leading, trailing) in [(true, true), (false, true), (true, false), (false, false)] {
            let marked = conversation.marked(mark, Enclosure { leading, trailing });
            // Marks can change what a template does, so a rendering counts only if it is the plain
            // one apart from its marks.
            let found = template
                .render(&marked, add_generation_prompt)
                .ok()
                .and_then(|rendered| Self::read(&rendered, mark, conversation.image))
                .filter(|found| found.text == text);
            let Some(found) = found else { continue };
            if let Some(turn) = found.repeated {
                return Err(refused(format!(
                    "the chat template repeats the text of {}",
                    turn_name(conversation, turn)
                )));
            }
            return Ok(found);
        }
        Err(refused(
            "the chat template rewrites texts depending on how they begin or end, so that the \
             positions of the turns in its prompt are not known",
        ))
    }

    /// Takes the marks out of `rendered`; `None` if there is no label between two of them.
    fn read(rendered: &str, mark: char, image: &str) -> Option<Self> {
        let mut places = Self { text: String::with_capacity(rendered.len()), ..Self::default() };
        for (position, part) in rendered.split(mark).enumerate() {
            let here = places.text.len();
            if position % 2 == 0 {
                places.text.push_str(part);
            } else if let Some(number) = part.strip_prefix('+') {
                places.text.push_str(image);
                places.images.push((number.parse().ok()?, here..places.text.len()));
            } else {
                let label = part.strip_suffix(':');
                let (turn, segment) = label.unwrap_or(part).split_once('.')?;
                let key = (turn.parse().ok()?, segment.parse().ok()?);
                let (start, end) = places.segments.entry(key).or_default();
                let place = if label.is_some() { end } else { start };
                if place.replace(here).is_some() {
                    places.repeated = Some(key.0);
                }
            }
        }
        Some(places)
    }

    /// Start and end of a turn's text, as far as they are known.
    pub(crate) fn turn(&self, turn: usize) -> (Option<usize>, Option<usize>) {
        let mut segments = self.segments.range((turn, 0)..(turn + 1, 0)).map(|(_, place)| place);
        let Some(&(start, first_end)) = segments.next() else { return (None, None) };
        (start, segments.next_back().map_or(first_end, |&(_, end)| end))
    }

    /// Position of the text of a turn that the template does not cut.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`]: the text is not there.
    pub(crate) fn whole_text(
        &self,
        conversation: &Conversation,
        turn: usize,
    ) -> Result<Range<usize>, Reject> {
        match self.turn(turn) {
            (Some(start), Some(end)) => Ok(start..end),
            _ => Err(left_out(conversation, turn)),
        }
    }

    /// Where `word` begins in the template's own text.
    pub(crate) fn find_outside_texts(&self, word: &str) -> Vec<usize> {
        let mut found = Vec::new();
        let mut done = 0;
        let ends = self.segments.values().map(|&(start, end)| {
            let start = start.or(end).unwrap_or(0);
            (start, end.unwrap_or(start))
        });
        let mut ends: Vec<_> = ends.collect();
        ends.sort_unstable();
        ends.push((self.text.len(), self.text.len()));
        for (start, end) in ends {
            let words = self.text.get(done..start).unwrap_or_default();
            found.extend(words.match_indices(word).map(|(at, _)| done + at));
            done = done.max(end);
        }
        found
    }
}

/// A turn for a message: "turn 2 (user)".
pub(crate) fn turn_name(conversation: &Conversation, turn: usize) -> String {
    format!("turn {turn} ({})", conversation.turns[turn].role.name())
}

pub(crate) fn left_out(conversation: &Conversation, turn: usize) -> Reject {
    let hint = match conversation.turns[turn].role {
        Role::System if turn > 0 => "; it may support a system turn only as the first",
        _ => "",
    };
    refused(format!(
        "the chat template leaves out or rewrites the text of {}{hint}",
        turn_name(conversation, turn)
    ))
}

pub(crate) fn refused(detail: impl Into<String>) -> Reject {
    Reject::new(RejectReason::TemplateRefused, detail)
}
