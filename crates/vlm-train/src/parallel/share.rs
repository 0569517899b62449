//! What the ranks tell each other before a step: enough to weigh every rank's loss exactly, to stop
//! together and to leave out together what nobody can learn from.

use vlm_data::Batch;

/// What one rank brings to a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Rows it trains on.
    pub rows: u64,
    /// Their tokens, without padding.
    pub tokens: u64,
    /// Their supervised tokens.
    pub supervised_tokens: u64,
    /// Tokens of its longest row.
    pub seq_len: u64,
    /// Rows that it set aside.
    pub rejected: u64,
    /// Whether a trained parameter has a part in its loss.
    pub learns: bool,
    /// Whether it was asked to stop.
    pub stop: bool,
    /// Whether it cannot go on.
    pub failed: bool,
}

impl Share {
    pub(super) const NUM_FIELDS: usize = 8;

    /// The share that `batch` is. `learns_from_text`: whether anything but the way of the images
    /// into the language model is trained.
    pub fn of(batch: &Batch, learns_from_text: bool) -> Self {
        let has_input = learns_from_text || !batch.images.is_empty();
        Self {
            rows: batch.batch_size as u64,
            tokens: batch.lengths.iter().sum::<usize>() as u64,
            supervised_tokens: batch.num_supervised as u64,
            seq_len: batch.seq_len as u64,
            rejected: batch.rejected.len() as u64,
            learns: batch.num_supervised > 0 && has_input,
            stop: false,
            failed: false,
        }
    }

    pub(super) fn to_numbers(self) -> [i64; Self::NUM_FIELDS] {
        let counts = [self.rows, self.tokens, self.supervised_tokens, self.seq_len, self.rejected];
        let [rows, tokens, supervised_tokens, seq_len, rejected] = counts.map(|n| n as i64);
        let [learns, stop, failed] = [self.learns, self.stop, self.failed].map(i64::from);
        [rows, tokens, supervised_tokens, seq_len, rejected, learns, stop, failed]
    }

    pub(super) fn from_numbers(numbers: &[i64; Self::NUM_FIELDS]) -> Self {
        let [rows, tokens, supervised_tokens, seq_len, rejected, ..] = numbers.map(|n| n as u64);
        let [.., learns, stop, failed] = numbers.map(|n| n != 0);
        Self { rows, tokens, supervised_tokens, seq_len, rejected, learns, stop, failed }
    }
}

/// What all ranks bring to a step together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows.
    pub rows: u64,
    /// Tokens, without padding.
    pub tokens: u64,
    /// Supervised tokens.
    pub supervised_tokens: u64,
    /// Tokens of the longest row of all.
    pub seq_len: u64,
    /// Rows set aside.
    pub rejected: u64,
    /// Whether any rank learns from the step.
    pub learns: bool,
    /// Whether any rank was asked to stop.
    pub stop: bool,
    /// Whether any rank cannot go on.
    pub failed: bool,
}

impl Totals {
    /// Adds the shares up.
    pub fn of(shares: &[Share]) -> Self {
        shares.iter().fold(Self::default(), |sum, share| Self {
            rows: sum.rows + share.rows,
            tokens: sum.tokens + share.tokens,
            supervised_tokens: sum.supervised_tokens + share.supervised_tokens,
            seq_len: sum.seq_len.max(share.seq_len),
            rejected: sum.rejected + share.rejected,
            learns: sum.learns || share.learns,
            stop: sum.stop || share.stop,
            failed: sum.failed || share.failed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_survives_the_way_to_the_others() {
        let share = Share {
            rows: 1,
            tokens: 2,
            supervised_tokens: 3,
            seq_len: 4,
            rejected: 5,
            learns: true,
            stop: false,
            failed: true,
        };
        assert_eq!(Share::from_numbers(&share.to_numbers()), share);
    }

    #[test]
    fn totals_are_sums_but_for_the_longest_row() {
        let one = Share { rows: 2, seq_len: 9, stop: true, ..Share::default() };
        let other = Share { rows: 3, seq_len: 4, learns: true, ..Share::default() };
        let totals = Totals::of(&[one, other]);
        assert_eq!((totals.rows, totals.seq_len), (5, 9));
        assert!(totals.learns && totals.stop && !totals.failed);
    }

    #[test]
    fn text_alone_teaches_a_projector_nothing() {
        let text = Batch { batch_size: 1, num_supervised: 3, ..Batch::default() };
        assert!(Share::of(&text, true).learns);
        assert!(!Share::of(&text, false).learns);
    }
}
