//! A row as token ids, with the tokens that are learned, cut at a length limit.

use std::ops::Range;

use crate::reject::{Reject, RejectReason};

/// A row as token ids, before labels are shifted by one for training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// `[n]`, with n at most the length limit.
    pub input_ids: Vec<i64>,
    /// Tokens to be predicted, in order: the text of each answer, its end token, and the token
    /// after that if it belongs to the turn, without the tokens of images.
    pub supervised: Vec<Range<usize>>,
    /// First token of each image, in the order of the row's images.
    pub image_starts: Vec<usize>,
}

impl EncodedRow {
    /// The spans of `supervised` for which a batch has labels: no position predicts the first
    /// token.
    pub(crate) fn labelled_spans(&self) -> impl Iterator<Item = Range<usize>> {
        let length = self.input_ids.len();
        let labelled = move |span: &Range<usize>| span.start.max(1)..span.end.min(length);
        self.supervised.iter().map(labelled).filter(|span| !span.is_empty())
    }

    /// For each token whether it is learned, that is, whether it is a label of the batch; `[n]`.
    pub fn supervised_mask(&self) -> Vec<bool> {
        let mut mask = vec![false; self.input_ids.len()];
        self.labelled_spans().for_each(|span| mask[span].fill(true));
        mask
    }

    /// The first `max_seq_len` tokens.
    ///
    /// # Errors
    /// [`RejectReason::CutThroughImage`], [`RejectReason::NoSupervisedToken`].
    pub fn cut(mut self, max_seq_len: usize, tokens_per_image: usize) -> Result<Self, Reject> {
        let num_tokens = self.input_ids.len();
        let length = num_tokens.min(max_seq_len);
        for (k, &start) in self.image_starts.iter().enumerate() {
            // The model's input is one token shorter than the ids.
            if start + tokens_per_image >= length {
                return Err(Reject::new(
                    RejectReason::CutThroughImage,
                    format!(
                        "image {k} is tokens {start} to {} of {num_tokens}, and the row is cut at \
                         `max_seq_len` {max_seq_len}; raise it or shorten the text",
                        start + tokens_per_image,
                    ),
                ));
            }
        }
        let has_answer = !self.supervised.is_empty();
        self.supervised.iter_mut().for_each(|span| span.end = span.end.min(length));
        self.supervised.retain(|span| !span.is_empty());
        // Position 0 has no token before it that could predict it.
        if self.supervised.iter().all(|span| span.end <= 1) {
            let detail = if has_answer {
                format!(
                    "no answer begins within `max_seq_len` {max_seq_len} (the row has {num_tokens} \
                     tokens)"
                )
            } else {
                "expected a turn of the assistant with text, found none".to_owned()
            };
            return Err(Reject::new(RejectReason::NoSupervisedToken, detail));
        }
        self.input_ids.truncate(length);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_has_the_spans_without_the_first_token() {
        let row = EncodedRow {
            input_ids: vec![1, 2, 3, 4, 5],
            supervised: vec![0..2, 4..5],
            image_starts: Vec::new(),
        };
        assert_eq!(row.supervised_mask(), [false, true, false, false, true]);
    }
}
