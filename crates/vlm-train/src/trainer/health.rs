//! Checks that the run learns: finite losses and gradients, and rows with supervised tokens.

use vlm_display::count;
use vlm_infer::evaluation::EvalReport;
use vlm_model::ModelError;

use super::Trainer;
use super::micro_batch_loss::MicroBatchLoss;
use super::report::GlobalLoss;
use crate::TrainError;

/// Largest number of rows that a message names.
const NUM_ROWS_NAMED: usize = 8;

impl Trainer<'_> {
    /// Returns an error if the first loss of the run is not finite, because then no later one would
    /// be. `rows` are the rows of this rank's micro-batch, and `own` is their part of the loss.
    pub(super) fn check_first_loss(
        &self,
        loss: GlobalLoss,
        own: Option<&MicroBatchLoss>,
        rows: &[usize],
    ) -> Result<(), TrainError> {
        let is_first = self.state.last_loss.is_none() && self.state.counters.update == 0;
        let Some(loss) = loss.loss.filter(|loss| is_first && !loss.is_finite()) else {
            return Ok(());
        };
        let own = own.map(|own| f64::try_from(&own.mean)).transpose().map_err(ModelError::from)?;
        let of_rows = match own {
            Some(own) if !own.is_finite() => format!("of {}", self.locate(rows)),
            _ => "of the rows of another rank".to_owned(),
        };
        Err(TrainError::Failed(format!(
            "step {}: the first loss of the run, {of_rows}, is {loss}, before any update. Check \
             that the weights of `lm`, `vision` and the projector are finite (`vlm inspect FILE` \
             prints the sum of each tensor); instead of `dtype = float16` use bfloat16 or float32",
            self.state.counters.step,
        )))
    }

    /// The error for too many consecutive skipped updates. The last one was at `step`, with `rows`.
    pub(super) fn diverged(&mut self, step: u64, rows: &[usize]) -> TrainError {
        // The checkpoint that is being written may become the last one.
        if let Err(error) = self.saver.wait(&|| ()) {
            tracing::warn!("{error}");
        }
        TrainError::Failed(format!(
            "step {step}: skipped {} because the loss or gradient was not finite. The rows of the \
             last one are {}. {}. Lower `learning_rate`, or check these rows",
            count(self.state.skipped_in_a_row, "consecutive update"),
            self.locate(rows),
            self.last_healthy_checkpoint(),
        ))
    }

    /// Logs that a checkpoint is due but not written yet.
    pub(super) fn warn_of_late_save(&self) {
        if self.world.is_first_rank() {
            tracing::warn!(
                "step {}: the update was skipped because its loss or gradient was not finite; the \
                 checkpoint will be written after the next update that is not skipped. {}",
                self.state.counters.step,
                self.last_healthy_checkpoint()
            );
        }
    }

    /// Warns if an evaluation shows that the model hardly uses the images, once the learning rate
    /// has been warmed up and a tenth of the run is done: a new projector starts without any use.
    pub(super) fn warn_of_low_image_gain(&self, report: &EvalReport) {
        let step = self.state.counters.step;
        let start = self.schedule.warmup_steps().max(self.total_steps().div_ceil(10));
        if step >= start
            && let Some(warning) = report.image_gain_warning()
        {
            tracing::warn!("step {step}: {warning}");
        }
    }

    /// A sentence about the newest healthy checkpoint for a message, without a full stop.
    pub(crate) fn last_healthy_checkpoint(&self) -> String {
        match self.saver.last() {
            Some(path) => format!("The last healthy checkpoint is {}", path.display()),
            None => "There is no earlier checkpoint".to_owned(),
        }
    }

    /// Returns an error if the run ended without a single update.
    pub(super) fn check_that_anything_was_learned(&self) -> Result<(), TrainError> {
        let counters = self.state.counters;
        if counters.supervised_tokens == 0 && self.reject_budget.num_rejected() > 0 {
            return Err(self.reject_budget.too_many().into());
        }
        if counters.supervised_tokens == 0 {
            return Err(TrainError::Failed(format!(
                "no row of {} has a supervised token; check that the rows end with a \
                 turn of the assistant, and raise `max_seq_len` if they are long",
                count(counters.step, "step")
            )));
        }
        if counters.update == 0 && counters.skipped_updates == 0 {
            return Err(TrainError::Failed(format!(
                "no update was made in {}: no row has an image, but only the projector or \
                 the vision encoder is trained; train on rows with images, or set \
                 `unfreeze_last_layers` or `train_lm`",
                count(counters.step, "step")
            )));
        }
        Ok(())
    }

    /// The locations of these rows in the dataset, for a message.
    fn locate(&self, rows: &[usize]) -> String {
        let named: Vec<String> =
            rows.iter().take(NUM_ROWS_NAMED).map(|&row| self.source.locate(row)).collect();
        let more = if rows.len() > named.len() { ", …" } else { "" };
        format!("{}{more}", named.join(", "))
    }
}
