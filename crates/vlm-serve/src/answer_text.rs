//! The text of an answer while it is generated: from tokens to pieces of text that can be sent.

use vlm_data::{ChatTokenizer, TextStream};

/// Makes text of the tokens of one answer. The pieces together are the answer, without spaces
/// around it, and end before the first of the stop texts. What could be the beginning of a stop
/// text, or a space at the end, is kept back until more is known.
#[derive(Debug, Default)]
pub(crate) struct AnswerText {
    stream: TextStream,
    stop: Vec<String>,
    /// Text that was not returned yet.
    kept: String,
    has_begun: bool,
}

impl AnswerText {
    /// An answer that ends before the first of the texts `stop`.
    pub(crate) fn new(stop: Vec<String>) -> Self {
        Self { stop, ..Self::default() }
    }

    /// Takes a token. Returns the text that can be sent, and whether a stop text was found.
    pub(crate) fn push(&mut self, tokenizer: &ChatTokenizer, id: i64) -> (String, bool) {
        let piece = self.stream.push(tokenizer, id);
        self.add(&piece)
    }

    /// Ends the answer and returns the rest of the text.
    pub(crate) fn finish(&mut self, tokenizer: &ChatTokenizer) -> (String, bool) {
        let piece = std::mem::take(&mut self.stream).finish(tokenizer);
        let (mut text, is_stopped) = self.add(&piece);
        if !is_stopped {
            text += &self.take(self.kept.len());
        }
        (text, is_stopped)
    }

    fn add(&mut self, piece: &str) -> (String, bool) {
        self.kept += piece;
        if let Some(at) = self.stop.iter().filter_map(|stop| self.kept.find(stop.as_str())).min() {
            self.kept.truncate(at);
            return (self.take(at), true);
        }
        let begins_stop = |&at: &usize| {
            let rest = &self.kept[at..];
            self.stop.iter().any(|stop| stop.starts_with(rest))
        };
        let certain = self.kept.char_indices().map(|(at, _)| at).find(begins_stop);
        (self.take(certain.unwrap_or(self.kept.len())), false)
    }

    /// Removes and returns the first `len` bytes, without spaces at the beginning of the answer and
    /// at the end.
    fn take(&mut self, len: usize) -> String {
        let begin = if self.has_begun { 0 } else { len - self.kept[..len].trim_start().len() };
        let end = begin + self.kept[begin..len].trim_end().len();
        let text = self.kept[begin..end].to_owned();
        self.kept.drain(..end);
        self.has_begun |= !text.is_empty();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces that are sent of `pieces`, joined by `|`, and whether a stop text was found.
    fn sent(stop: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut answer = AnswerText::new(stop.iter().map(|&stop| stop.to_owned()).collect());
        let mut all = Vec::new();
        for piece in pieces {
            let (text, is_stopped) = answer.add(piece);
            all.push(text);
            if is_stopped {
                return (all.join("|"), true);
            }
        }
        all.push(answer.take(answer.kept.len()));
        (all.join("|"), false)
    }

    #[test]
    fn spaces_around_the_answer_are_not_sent() {
        assert_eq!(sent(&[], &[" ", " A", " dog ", "\n"]), ("|A| dog||".into(), false));
        assert_eq!(sent(&[], &[" \n"]), ("|".into(), false));
    }

    #[test]
    fn an_answer_ends_before_the_first_stop_text() {
        assert_eq!(sent(&["dog"], &["A d", "og."]), ("A|".into(), true));
        assert_eq!(sent(&["dog"], &["A d", "oor"]), ("A| door|".into(), false));
        assert_eq!(sent(&["xy", "a b"], &["1 a", " bxy"]), ("1|".into(), true));
        assert_eq!(sent(&["aab"], &["aa", "ab"]), ("|a".into(), true));
        assert_eq!(sent(&["象"], &["大", "象"]), ("大|".into(), true));
        assert_eq!(sent(&["dog"], &["A do"]), ("A| do".into(), false));
    }
}
