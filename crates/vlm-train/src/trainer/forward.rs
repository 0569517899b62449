//! The forward pass of a micro-batch.

use vlm_data::Batch;
use vlm_infer::autocast_kind;
use vlm_torch::span;

use super::Trainer;
use super::micro_batch_loss::MicroBatchLoss;
use crate::TrainError;
use crate::parallel::GlobalStepStats;

impl Trainer<'_> {
    /// Forward pass of this rank's batch, with the graph for the backward pass.
    pub(super) fn forward(
        &self,
        batch: &Batch,
        stats: &GlobalStepStats,
    ) -> Result<MicroBatchLoss, TrainError> {
        if self.model.lm().config().dropout > 0.0 {
            // The seed depends on the step, so that a continued run draws the same numbers.
            let seed = self.config.run.seed;
            tch::manual_seed(self.state.seed_of_step(seed, self.world.rank()));
        }
        let copy = span("copy to the device");
        let on_device = self.transfer.send(batch)?;
        drop(copy);
        let kind = autocast_kind(self.dtype);
        let loss = vlm_torch::autocast(self.model.device(), kind, || {
            self.model.loss(&on_device.model, &on_device.supervised, &on_device.targets, true)
        })??;
        let mut mean = &loss.sum / stats.supervised_tokens as f64;
        // The auxiliary loss is a mean over rows.
        let share_of_rows = batch.batch_size as f64 / stats.rows as f64;
        let aux_loss = loss.aux_loss.map(|aux_loss| aux_loss * share_of_rows);
        if let Some(aux_loss) = &aux_loss {
            mean += aux_loss;
        }
        Ok(MicroBatchLoss { mean, aux_loss })
    }
}
