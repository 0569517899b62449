//! The progress of a training run: all that a checkpoint holds besides weights and optimizer state.

use serde::{Deserialize, Serialize};
use vlm_infer::Dtype;

use crate::parallel::GlobalStepStats;
use crate::recent_losses::RecentLosses;
use crate::scaler::LossScaler;

/// Counts of what a run has done so far, in all epochs and on all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Number of steps (micro-batches) done.
    pub step: u64,
    /// Number of updates of the weights.
    pub update: u64,
    /// Number of rows trained on.
    pub samples: u64,
    /// Number of tokens in these rows, padding not counted.
    pub tokens: u64,
    /// Number of supervised tokens in these rows.
    pub supervised_tokens: u64,
    /// Number of updates skipped because loss or gradient was not finite, or, if asked, much larger
    /// than before.
    pub skipped_updates: u64,
    /// Number of steps without a supervised token.
    pub empty_steps: u64,
    /// Number of distinct rejected rows.
    pub rejected_rows: u64,
}

impl Counters {
    /// Adds the rows and tokens of a step, but does not count the step itself.
    pub(crate) fn add(&mut self, stats: &GlobalStepStats) {
        self.samples += stats.rows;
        self.tokens += stats.tokens;
        self.supervised_tokens += stats.supervised_tokens;
        self.empty_steps += u64::from(stats.supervised_tokens == 0);
    }
}

/// The progress of a training run. Together with the weights and the optimizer state it is all that
/// a run needs to continue as if it had not been interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrainState {
    /// Number of the current epoch, from 0.
    pub epoch: u64,
    /// Index of the next batch of that epoch, from 0.
    pub next_batch: usize,
    /// Counts since the start of the run.
    pub counters: Counters,
    /// Loss of the last micro-batch that had one, in nats per supervised token.
    pub last_loss: Option<f64>,
    /// Number of rows of this epoch so far, on all ranks, including rejected rows.
    #[serde(default)]
    pub epoch_rows: usize,
    /// Number of rejected rows among them.
    #[serde(default)]
    pub epoch_rejected: usize,
    /// Number of consecutive skipped updates; 0 after an update that was not skipped.
    pub skipped_in_a_row: u64,
    /// Whether an evaluation of the current weights is due.
    #[serde(default)]
    pub eval_is_due: bool,
    /// Loss scaling; with float16 only.
    pub scaler: Option<LossScaler>,
    /// The last losses; with `loss_spike_factor` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent_losses: Option<RecentLosses>,
}

impl TrainState {
    /// The state of a run at step 0.
    pub(crate) fn start(dtype: Dtype) -> Self {
        Self::default().with_scaler_for(dtype)
    }

    /// The same state with loss scaling if `dtype` is float16, and without otherwise.
    pub(crate) fn with_scaler_for(self, dtype: Dtype) -> Self {
        let scaler = (dtype == Dtype::Float16).then(|| self.scaler.unwrap_or_default());
        Self { scaler, ..self }
    }

    /// The factor of the loss scaling; 1 without it.
    pub(crate) fn loss_scale(&self) -> f64 {
        self.scaler.map_or(1.0, |scaler| scaler.scale())
    }

    /// Counts an update, which is skipped if its gradients are not finite.
    pub(crate) fn count_update(&mut self, is_finite: bool) {
        if let Some(scaler) = &mut self.scaler {
            scaler.update(is_finite);
        }
        if is_finite {
            self.counters.update += 1;
            self.skipped_in_a_row = 0;
        } else {
            self.counters.skipped_updates += 1;
            self.skipped_in_a_row += 1;
        }
    }

    pub(crate) fn begin_next_epoch(&mut self) {
        self.epoch += 1;
        self.next_batch = 0;
        (self.epoch_rows, self.epoch_rejected) = (0, 0);
    }

    /// The seed of the random numbers of the next step on `rank`, in a run with the seed `seed`.
    pub(crate) fn seed_of_step(&self, seed: u64, rank: usize) -> i64 {
        let mut hasher = blake3::Hasher::new();
        for number in [seed, self.counters.step, rank as u64] {
            hasher.update(&number.to_le_bytes());
        }
        let bytes = hasher.finalize();
        bytes.as_bytes()[..7].iter().fold(0, |seed, &byte| seed << 8 | i64::from(byte))
    }
}
