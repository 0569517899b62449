//! Streams the text of an answer while it is generated: takes tokens and returns text, never half a
//! character.

use crate::chat::ChatTokenizer;

/// Stands for bytes that are not (yet) text.
const REPLACEMENT: char = '\u{FFFD}';

/// Turns the tokens of one answer into text while they are generated. A token may be a part of a
/// character, and its text may depend on the token before it: text is returned as soon as it is
/// complete.
#[derive(Debug, Default)]
pub struct TextStream {
    ids: Vec<i64>,
    /// Tokens from here on are decoded together; the first of them were returned already.
    window: usize,
    /// The text of the tokens before this one was returned.
    returned: usize,
}

impl TextStream {
    /// Takes the next token and returns the text that it completes, often none.
    pub fn push(&mut self, tokenizer: &ChatTokenizer, id: i64) -> String {
        self.ids.push(id);
        let text = self.rest(tokenizer);
        if text.is_empty() || text.ends_with(REPLACEMENT) {
            return String::new();
        }
        self.window = self.returned;
        self.returned = self.ids.len();
        text
    }

    /// Ends the answer and returns the remaining text, complete or not.
    pub fn finish(self, tokenizer: &ChatTokenizer) -> String {
        self.rest(tokenizer)
    }

    fn rest(&self, tokenizer: &ChatTokenizer) -> String {
        let known = tokenizer.decode(&self.ids[self.window..self.returned]);
        let all = tokenizer.decode(&self.ids[self.window..]);
        all.strip_prefix(&known).unwrap_or_default().to_owned()
    }
}
