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

    /// Checks a row that was read from a file.
    ///
    /// # Errors
    /// [`RejectReason::InvalidRow`]: an id that is not below `vocab_size`, a span or an image that is
    /// not in the row, or positions for another number of images than `num_images`.
    pub(crate) fn check(&self, vocab_size: usize, num_images: usize) -> Result<(), Reject> {
        let length = self.input_ids.len();
        let is_id = |&id: &i64| usize::try_from(id).is_ok_and(|id| id < vocab_size);
        let problem = if let Some(id) = self.input_ids.iter().find(|id| !is_id(id)) {
            format!("the token id {id}, but the vocabulary has {vocab_size}")
        } else if self.supervised.iter().any(|span| span.start > span.end || span.end > length) {
            format!("supervised spans beyond its {length} tokens")
        } else if !self.supervised.is_sorted_by(|a, b| a.end <= b.start) {
            "supervised spans that overlap".to_owned()
        } else if self.image_starts.len() != num_images
            || self.image_starts.iter().any(|&start| start >= length)
        {
            format!("{} positions for {num_images} images", self.image_starts.len())
        } else {
            return Ok(());
        };
        Err(Reject::invalid_row(format!("the prepared row is damaged: it has {problem}")))
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
    fn a_row_of_a_damaged_file_is_refused() {
        let row = |ids: &[i64], supervised: &[Range<usize>], images: &[usize]| {
            let row = EncodedRow {
                input_ids: ids.to_vec(),
                supervised: supervised.to_vec(),
                image_starts: images.to_vec(),
            };
            row.check(10, 1).map_err(|reject| reject.detail)
        };
        assert_eq!(row(&[0, 9, 3], &[0..1, 1..3], &[1]), Ok(()));
        let backwards = std::ops::Range { start: 2, end: 1 };
        for (damaged, expected) in [
            (row(&[0, 10, 3], &[], &[1]), "token id 10"),
            (row(&[0, -1, 3], &[], &[1]), "token id -1"),
            (row(&[0, 1, 3], &[0..1, 1..4], &[1]), "beyond its 3 tokens"),
            (row(&[0, 1, 3], &[backwards], &[1]), "beyond its 3 tokens"),
            (row(&[0, 1, 3], &[0..2, 1..3], &[1]), "overlap"),
            (row(&[0, 1, 3], &[], &[]), "0 positions for 1"),
            (row(&[0, 1, 3], &[], &[3]), "1 positions for 1"),
        ] {
            let problem = damaged.unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }

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
