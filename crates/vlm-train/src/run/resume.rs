//! Restores the state of the checkpoint that a run continues from.

use vlm_display::count;

use super::Run;
use super::identity::epochs;
use crate::TrainError;
use crate::checkpoint::Checkpoint;
use crate::parallel::Phase;
use crate::schedule::Schedule;
use crate::trainer::Trainer;

impl Run {
    /// Restores the checkpoint of rank 0, if there is one. The other ranks receive its state from
    /// rank 0, so that only rank 0 reads the disk. Collective.
    pub(super) fn restore(
        &self,
        resumed: Option<&Checkpoint>,
        trainer: &mut Trainer,
    ) -> Result<(), TrainError> {
        let loaded = resumed.map(|checkpoint| self.load(checkpoint, trainer)).transpose();
        let is_resumed = self.world.all_ready(loaded)?.is_some();
        if self.world.broadcast(is_resumed)? {
            self.world.set_phase(0, Phase::Connect);
            trainer.broadcast_state(resumed.map(|checkpoint| &checkpoint.state_dict))?;
            self.world.set_phase(0, Phase::StartUp);
        }
        Ok(())
    }

    fn load(&self, checkpoint: &Checkpoint, trainer: &mut Trainer) -> Result<(), TrainError> {
        let path = &checkpoint.path;
        trainer.load_state_dict(&checkpoint.state_dict).map_err(|e| TrainError::at(path, e))?;
        tracing::info!("continuing from {} (step {})", path.display(), trainer.state.counters.step);
        self.log_more_epochs(checkpoint);
        Ok(())
    }

    /// Logs how the learning rate changes when the run has more epochs than the one it continues.
    fn log_more_epochs(&self, checkpoint: &Checkpoint) {
        let optim = &self.config.optim;
        let Some(before) = epochs(&checkpoint.identity).filter(|&n| n < optim.epochs) else {
            return;
        };
        let step = checkpoint.state_dict.train_state.counters.step;
        let steps = self.loader.batches_per_epoch() as u64;
        let rate = |epochs: u64, step: u64| {
            Schedule::new(optim, epochs * steps).rate(step, optim.learning_rate)
        };
        tracing::info!(
            "`epochs` was {before} and is now {}: the learning rate now follows the schedule of a \
             run of {}: {:.3e} at step {}, after {:.3e} at step {step}",
            optim.epochs,
            count(optim.epochs * steps, "step"),
            rate(optim.epochs, step),
            step + 1,
            rate(before, step.saturating_sub(1)),
        );
    }
}
