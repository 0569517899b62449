//! Marks around the texts of a conversation. A template is rendered with them, and where they stand
//! in the rendering shows where each text lies, whatever the texts say.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::rows::{IMAGE_TAG, Role, Turn, shows_images};
use crate::template::{Content, Message, Part};

/// How a template takes the content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContentForm {
    /// As text.
    Text,
    /// As a list of one part of text; the template has no words for an image.
    TextPart,
    /// As a list of parts, where the template writes `image_text` for each image.
    Parts {
        /// What the template writes for an image, without white space at its ends.
        image_text: String,
        /// The bytes of it in whose place the image's tokens are put.
        core: Range<usize>,
    },
}

/// Turns as they are put to a template.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conversation<'a> {
    pub(crate) turns: &'a [Turn],
    pub(crate) form: &'a ContentForm,
    /// What the tokenizer is to see for an image.
    pub(crate) image: &'a str,
}

/// Which side of the white space at the ends of an answer the marks stand on: some templates trim
/// one end or both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Enclosure {
    pub(crate) leading: bool,
    pub(crate) trailing: bool,
}

/// The places that marks show in a rendering without them.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The rendering without marks.
    pub(crate) text: String,
    /// First and last byte of the segments of turns, by turn and segment; those that the template
    /// dropped are not there.
    pub(crate) segments: BTreeMap<(usize, usize), (Option<usize>, Option<usize>)>,
    /// Images that are written into texts: number and place.
    pub(crate) images: Vec<(usize, Range<usize>)>,
    /// A turn whose text is there twice.
    pub(crate) repeated: Option<usize>,
}

impl Conversation<'_> {
    /// The messages without marks.
    pub(crate) fn plain(&self) -> Vec<Message> {
        self.messages(&mut |_, _, text| text.to_owned(), &mut |_| self.image.to_owned())
    }

    /// The messages with marks around every text and in place of every image in one.
    pub(crate) fn marked(&self, mark: char, enclosure: Enclosure) -> Vec<Message> {
        let none = Enclosure { leading: false, trailing: false };
        let mut enclose = |turn: usize, segment: usize, text: &str| {
            let is_answer = self.turns[turn].role == Role::Assistant;
            let enclosure = if is_answer { enclosure } else { none };
            enclose(&format!("{turn}.{segment}"), text, mark, enclosure)
        };
        self.messages(&mut enclose, &mut |image| format!("{mark}+{image}{mark}"))
    }

    fn messages(
        &self,
        of_text: &mut dyn FnMut(usize, usize, &str) -> String,
        of_image: &mut dyn FnMut(usize) -> String,
    ) -> Vec<Message> {
        let mut num_images = 0;
        let mut next_image = || {
            num_images += 1;
            of_image(num_images - 1)
        };
        let mut messages = Vec::with_capacity(self.turns.len());
        for (k, turn) in self.turns.iter().enumerate() {
            let segments = self.segments(k);
            let content = match self.form {
                ContentForm::Parts { .. } => {
                    let mut parts = Vec::new();
                    for (segment, text) in segments.iter().enumerate() {
                        parts.extend((segment > 0).then_some(Part::Image));
                        if !text.is_empty() || segments.len() == 1 {
                            parts.push(Part::Text { text: of_text(k, segment, text) });
                        }
                    }
                    Content::Parts(parts)
                }
                form => {
                    let mut text = String::with_capacity(turn.content.len());
                    for (segment, piece) in segments.iter().enumerate() {
                        if segment > 0 {
                            text += &next_image();
                        }
                        text += piece;
                    }
                    let text = of_text(k, 0, &text);
                    if *form == ContentForm::Text {
                        Content::Text(text)
                    } else {
                        Content::Parts(vec![Part::Text { text }])
                    }
                }
            };
            messages.push(Message { role: turn.role, content });
        }
        messages
    }

    /// The texts of a turn between its images.
    fn segments(&self, turn: usize) -> Vec<&str> {
        let content = &self.turns[turn].content;
        if shows_images(self.turns, turn) {
            content.split(IMAGE_TAG).collect()
        } else {
            vec![content]
        }
    }

    pub(crate) fn num_images(&self) -> usize {
        (0..self.turns.len()).map(|turn| self.segments(turn).len() - 1).sum()
    }

    /// Whether a turn says anything apart from its images.
    pub(crate) fn has_text(&self, turn: usize) -> bool {
        self.segments(turn).iter().any(|text| !text.trim().is_empty())
    }

    /// A character that no turn contains, from the planes for private use.
    pub(crate) fn unused_char(&self) -> char {
        ('\u{F0000}'..='\u{10FFFD}')
            .find(|&c| !self.turns.iter().any(|turn| turn.content.contains(c)))
            .unwrap_or('\u{F0000}')
    }
}

fn enclose(label: &str, text: &str, mark: char, enclosure: Enclosure) -> String {
    let leading = text.len() - text.trim_start().len();
    let trailing = text.trim_end().len();
    let is_blank = text.trim().is_empty();
    let start = if enclosure.leading { 0 } else { leading };
    let end = match (enclosure.trailing, is_blank) {
        (true, _) => text.len(),
        (false, true) => start,
        (false, false) => trailing,
    };
    let (before, inside, after) = (&text[..start], &text[start..end], &text[end..]);
    format!("{before}{mark}{label}{mark}{inside}{mark}{label}:{mark}{after}")
}

impl Places {
    /// Takes the marks out of `rendered`; `None` where what stands between two is no label.
    pub(crate) fn read(rendered: &str, mark: char, image: &str) -> Option<Self> {
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

    /// First byte of the turn's text and the one after its last, as far as they are known.
    pub(crate) fn turn(&self, turn: usize) -> (Option<usize>, Option<usize>) {
        let mut segments = self.segments.range((turn, 0)..(turn + 1, 0)).map(|(_, place)| place);
        let Some(&(start, first_end)) = segments.next() else { return (None, None) };
        (start, segments.next_back().map_or(first_end, |&(_, end)| end))
    }
}
