//! Statistics that the ranks exchange before each step. With them all ranks weigh their losses
//! exactly, stop at the same step, and skip a batch together when no rank can learn from it.

use vlm_data::Batch;

use crate::requests::Request;

/// Statistics of one rank's batch of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalStepStats {
    /// Number of rows in the rank's batch.
    pub rows: u64,
    /// Number of tokens in these rows, padding not counted.
    pub tokens: u64,
    /// Number of supervised tokens in these rows.
    pub supervised_tokens: u64,
    /// Length of the longest row, in tokens.
    pub seq_len: u64,
    /// Number of rows that the rank's loader rejected for this batch.
    pub rejected: u64,
    /// Number of operations that forward and backward pass need; 0 if they are not counted.
    pub flops: u64,
    /// Whether the rank's loss has a gradient for any trained parameter.
    pub learns: bool,
    /// What the rank was asked to do.
    pub request: Request,
    /// Whether the rank has an error and cannot take part in the step.
    pub failed: bool,
}

impl LocalStepStats {
    pub(super) const NUM_FIELDS: usize = 9;

    /// The statistics of `batch`. `learns_from_text` is whether a row without images gives any
    /// trained parameter a gradient.
    pub fn of(batch: &Batch, learns_from_text: bool) -> Self {
        let has_input = learns_from_text || !batch.images.is_empty();
        Self {
            rows: batch.batch_size as u64,
            tokens: batch.lengths.iter().sum::<usize>() as u64,
            supervised_tokens: batch.num_supervised as u64,
            seq_len: batch.seq_len as u64,
            rejected: batch.rejected.len() as u64,
            flops: 0,
            learns: batch.num_supervised > 0 && has_input,
            request: Request::None,
            failed: false,
        }
    }

    pub(super) fn to_numbers(self) -> [i64; Self::NUM_FIELDS] {
        let Self { rows, tokens, supervised_tokens, seq_len, rejected, flops, .. } = self;
        let counts = [rows, tokens, supervised_tokens, seq_len, rejected, flops];
        let [rows, tokens, supervised_tokens, seq_len, rejected, flops] = counts.map(|n| n as i64);
        let [learns, failed] = [self.learns, self.failed].map(i64::from);
        let request = self.request as i64;
        [rows, tokens, supervised_tokens, seq_len, rejected, flops, request, learns, failed]
    }

    pub(super) fn from_numbers(numbers: &[i64; Self::NUM_FIELDS]) -> Self {
        let [rows, tokens, supervised_tokens, seq_len, rejected, flops, ..] =
            numbers.map(|n| n as u64);
        let [.., request, learns, failed] = *numbers;
        let (learns, failed) = (learns != 0, failed != 0);
        let known = [Request::None, Request::Save, Request::Stop];
        let request = known.into_iter().find(|&known| known as i64 == request).unwrap_or_default();
        Self { rows, tokens, supervised_tokens, seq_len, rejected, flops, learns, request, failed }
    }
}

/// Statistics of the batches of all ranks together at a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GlobalStepStats {
    /// Number of rows.
    pub rows: u64,
    /// Number of tokens, padding not counted.
    pub tokens: u64,
    /// Number of supervised tokens.
    pub supervised_tokens: u64,
    /// Length of the longest row of all ranks, in tokens.
    pub seq_len: u64,
    /// Number of rejected rows.
    pub rejected: u64,
    /// Number of operations that forward and backward pass need; 0 if they are not counted.
    pub flops: u64,
    /// Whether any rank learns from the step.
    pub learns: bool,
    /// What any rank was asked to do.
    pub request: Request,
    /// Whether any rank has an error.
    pub failed: bool,
}

impl GlobalStepStats {
    /// Combines the statistics of all ranks.
    pub fn of(ranks: &[LocalStepStats]) -> Self {
        ranks.iter().fold(Self::default(), |sum, rank| Self {
            rows: sum.rows + rank.rows,
            tokens: sum.tokens + rank.tokens,
            supervised_tokens: sum.supervised_tokens + rank.supervised_tokens,
            seq_len: sum.seq_len.max(rank.seq_len),
            rejected: sum.rejected + rank.rejected,
            flops: sum.flops + rank.flops,
            learns: sum.learns || rank.learns,
            request: sum.request.max(rank.request),
            failed: sum.failed || rank.failed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_stats_survive_the_conversion_to_numbers_and_back() {
        let stats = LocalStepStats {
            rows: 1,
            tokens: 2,
            supervised_tokens: 3,
            seq_len: 4,
            rejected: 5,
            flops: 1 << 60,
            learns: true,
            request: Request::Save,
            failed: true,
        };
        assert_eq!(LocalStepStats::from_numbers(&stats.to_numbers()), stats);
    }

    #[test]
    fn global_stats_are_sums_except_for_seq_len_which_is_the_maximum() {
        let one =
            LocalStepStats { rows: 2, seq_len: 9, request: Request::Stop, ..Default::default() };
        let other = LocalStepStats {
            rows: 3,
            seq_len: 4,
            learns: true,
            request: Request::Save,
            ..Default::default()
        };
        let global = GlobalStepStats::of(&[one, other]);
        assert_eq!((global.rows, global.seq_len), (5, 9));
        assert!(global.learns && global.request == Request::Stop && !global.failed);
    }

    #[test]
    fn a_text_batch_is_not_learned_from_when_only_the_projector_is_trained() {
        let text = Batch { batch_size: 1, num_supervised: 3, ..Batch::default() };
        assert!(LocalStepStats::of(&text, true).learns);
        assert!(!LocalStepStats::of(&text, false).learns);
    }
}
