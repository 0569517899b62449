//! Puts marks around the texts of a conversation. A template is rendered with them, and their
//! positions in the rendering show where each text is, independently of what the texts say.

use std::ops::Range;

use crate::rows::{IMAGE_TAG, Role, Turn, shows_images};
use crate::template::{Content, Message, Part, TemplateInput};

/// The form in which a template takes the content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContentForm {
    /// Text.
    Text,
    /// A list of one text part; the template writes nothing for an image.
    TextPart,
    /// A list of parts; the template writes `image_text` for each image.
    Parts {
        /// What the template writes for an image, without white space around it.
        image_text: String,
        /// The bytes of it that are replaced by the image's tokens.
        core: Range<usize>,
    },
}

/// Turns in the form that is passed to a template.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conversation<'a> {
    pub(crate) turns: &'a [Turn],
    pub(crate) form: &'a ContentForm,
    /// The text for the tokenizer in place of an image.
    pub(crate) image: &'a str,
}

/// Whether the marks enclose the white space at the ends of an answer: some templates trim one end
/// or both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Enclosure {
    pub(crate) leading: bool,
    pub(crate) trailing: bool,
}

impl Conversation<'_> {
    /// The messages without marks.
    pub(crate) fn plain(&self) -> TemplateInput {
        self.messages(&mut |_, _, text| text.to_owned(), &mut |_| self.image.to_owned())
    }

    /// The messages with marks around every text and in place of every image in a text.
    pub(crate) fn marked(&self, mark: char, enclosure: Enclosure) -> TemplateInput {
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
    ) -> TemplateInput {
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
        let tools = self.turns.first().and_then(|first| first.tools.clone());
        TemplateInput { messages, tools }
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

    /// Whether a turn has text besides its images.
    pub(crate) fn has_text(&self, turn: usize) -> bool {
        self.segments(turn).iter().any(|text| !text.trim().is_empty())
    }

    /// A character from the planes for private use that no turn contains.
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
