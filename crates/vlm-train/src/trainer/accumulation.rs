//! The micro-batches that make one update of the weights.

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
    /// The position of micro-batch `index` of an epoch with `end` micro-batches. The last update of
    /// an epoch may have fewer than `accumulation_steps` micro-batches.
    pub(super) fn of(index: usize, end: usize, accumulation_steps: usize) -> Self {
        let first = index / accumulation_steps * accumulation_steps;
        let update_end = (first + accumulation_steps).min(end);
        Self { num_micro_batches: update_end - first, is_last: index + 1 == update_end }
    }
}
