//! Text of an answer while it is being made: tokens in, text out, never half a character.

use crate::chat::ChatTokenizer;

/// What stands for bytes that are no text (yet).
const REPLACEMENT: char = '\u{FFFD}';

/// Turns the tokens of one answer into text as they come. A token may be part of a character only,
/// and what a token's text is may depend on the one before it: text is given out as soon as it is
/// whole.
#[derive(Debug, Default)]
pub struct TextStream {
    ids: Vec<i64>,
    /// From here on tokens are decoded together; the first of them are given out already.
    window: usize,
    /// The tokens before this one are given out.
    told: usize,
}

impl TextStream {
    /// Takes the next token; the text that is new and whole with it, often none.
    pub fn push(&mut self, tokenizer: &ChatTokenizer, id: i64) -> String {
        self.ids.push(id);
        let text = self.untold(tokenizer);
        if text.is_empty() || text.ends_with(REPLACEMENT) {
            return String::new();
        }
        self.window = self.told;
        self.told = self.ids.len();
        text
    }

    /// The answer has ended: what is left, whole or not.
    pub fn finish(self, tokenizer: &ChatTokenizer) -> String {
        self.untold(tokenizer)
    }

    fn untold(&self, tokenizer: &ChatTokenizer) -> String {
        let known = tokenizer.decode(&self.ids[self.window..self.told]);
        let all = tokenizer.decode(&self.ids[self.window..]);
        all.strip_prefix(&known).unwrap_or_default().to_owned()
    }
}
