//! Whether the run still learns: losses and updates that are not finite, rows without anything to learn.

use vlm_model::ModelError;

use super::report::GlobalLoss;
use super::{MicroBatchLoss, Trainer};
use crate::TrainError;

/// Rows that a message names at most.
const NUM_ROWS_NAMED: usize = 8;

impl Trainer<'_> {
    /// Ends the run when its very first loss is not finite: no later one would be. `rows` are those of
    /// this rank's micro-batch, `own` their part of the loss.
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
            "step {}: the first loss of the run, {of_rows}, is {loss}, before anything was learned. \
             Check that --lm, --vision and the projector hold finite weights (`vlm inspect FILE` \
             prints the sum of each tensor) and, with --dtype float16, try bfloat16 or float32",
            self.state.counters.step,
        )))
    }

    /// The error of a run that skipped too many updates in a row, the last on `rows`.
    pub(super) fn diverged(&self, rows: &[usize]) -> TrainError {
        TrainError::Failed(format!(
            "step {}: {} updates in a row were skipped because their loss or gradient was not \
             finite, the last of {}. {}. Lower --learning-rate, or look at these rows",
            self.state.counters.step + 1,
            self.state.skipped_in_a_row,
            self.locate(rows),
            self.last_healthy_checkpoint(),
        ))
    }

    /// Says that no checkpoint is written for now.
    pub(super) fn warn_of_late_save(&self) {
        if self.world.is_first_rank() {
            tracing::warn!(
                "step {}: the update was skipped because its loss or gradient was not finite; no \
                 checkpoint is written before the next update that is made. {}",
                self.state.counters.step,
                self.last_healthy_checkpoint()
            );
        }
    }

    /// A sentence without its full stop.
    pub(crate) fn last_healthy_checkpoint(&self) -> String {
        match &self.last_checkpoint {
            Some(path) => format!("The last healthy checkpoint is {}", path.display()),
            None => "There is no checkpoint of before".to_owned(),
        }
    }

    /// A run that came to its end without a single update has failed.
    pub(super) fn check_that_anything_was_learned(&self) -> Result<(), TrainError> {
        let counters = self.state.counters;
        if counters.supervised_tokens == 0 && self.reject_budget.num_rejected() > 0 {
            return Err(self.reject_budget.too_many().into());
        }
        if counters.supervised_tokens == 0 {
            return Err(TrainError::Failed(format!(
                "no row of these {} steps had a token to learn from; check that the rows end with \
                 the assistant's turn, and raise --max-seq-len if they are long",
                counters.step
            )));
        }
        if counters.update == 0 && counters.skipped_updates == 0 {
            return Err(TrainError::Failed(format!(
                "no update in {} steps: the rows are text alone, and only the way of the images into \
                 the language model is trained; train on rows with images, or give \
                 --unfreeze-last-layers or --train-lm",
                counters.step
            )));
        }
        Ok(())
    }

    /// Where the rows of a micro-batch or update stand in the data.
    fn locate(&self, rows: &[usize]) -> String {
        let named: Vec<String> =
            rows.iter().take(NUM_ROWS_NAMED).map(|&row| self.source.locate(row)).collect();
        let more = if rows.len() > named.len() { ", …" } else { "" };
        format!("{}{more}", named.join(", "))
    }
}
