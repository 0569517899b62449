//! The micro-batches that make one update of the weights.

use std::ops::Range;

use vlm_data::Batch;

use crate::parallel::GlobalStepStats;
use crate::requests::Request;

/// The micro-batches whose gradients were accumulated since the last update.
#[derive(Debug, Default)]
pub(super) struct Accumulation {
    /// Number of supervised tokens on all ranks.
    pub(super) supervised_tokens: u64,
    /// Whether any micro-batch of any rank gives a trained parameter a gradient.
    pub(super) learns: bool,
    /// What any rank was asked to do.
    pub(super) request: Request,
    /// Whether the update is skipped because of the loss of a micro-batch.
    pub(super) is_skipped: bool,
    /// Indices of this rank's rows, for messages.
    pub(super) rows: Vec<usize>,
}

impl Accumulation {
    /// Adds a micro-batch: this rank's `batch`, and the statistics of all ranks.
    pub(super) fn add(&mut self, batch: &Batch, stats: &GlobalStepStats) {
        self.supervised_tokens += stats.supervised_tokens;
        self.learns |= stats.learns;
        self.request = self.request.max(stats.request);
        self.rows.extend(&batch.rows);
    }
}

/// Position of a micro-batch within its update.
#[derive(Debug, Clone, Copy)]
pub(super) struct MicroBatchPosition {
    /// Number of micro-batches of the update.
    pub(super) num_micro_batches: usize,
    /// Whether it is the last one, after which the weights are updated.
    pub(super) is_last: bool,
}

impl MicroBatchPosition {
    /// The position of micro-batch `index` among the micro-batches `trained` of an epoch. The first
    /// update of a continued epoch and the last one may have fewer than `accumulation_steps`
    /// micro-batches.
    pub(super) fn of(index: usize, trained: &Range<usize>, accumulation_steps: usize) -> Self {
        let first = index / accumulation_steps * accumulation_steps;
        let end = (first + accumulation_steps).min(trained.end);
        Self { num_micro_batches: end - first.max(trained.start), is_last: index + 1 == end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_micro_batches_of_an_update_have_a_weight_of_one_together() {
        for trained in [0..10, 6..10, 5..6, 3..8] {
            let mut weight = 0.0;
            for index in trained.clone() {
                let position = MicroBatchPosition::of(index, &trained, 4);
                weight += 1.0 / position.num_micro_batches as f64;
                assert_eq!(position.is_last, weight > 0.999, "{index} of {trained:?}");
                weight = if position.is_last { 0.0 } else { weight };
            }
            assert_eq!(weight, 0.0, "{trained:?}");
        }
    }
}
