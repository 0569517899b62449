//! Continuing from a checkpoint.

use serde_json::Value;

use super::Run;
use super::identity::{compare, epochs};
use crate::TrainError;
use crate::checkpoint::{self, Checkpoint};
use crate::config::{Resume, TrainConfig};
use crate::metrics;
use crate::out_dir::OutDir;
use crate::schedule::Schedule;
use crate::trainer::Trainer;

impl Run {
    /// Continues from rank 0's checkpoint, if it has one: all ranks get its weights, optimizer state
    /// and progress, so that only rank 0 needs its disk.
    pub(super) fn restore(
        &self,
        resumed: Option<&Checkpoint>,
        trainer: &mut Trainer,
    ) -> Result<(), TrainError> {
        let loaded = resumed.map(|checkpoint| self.load(checkpoint, trainer)).transpose();
        let is_resumed = self.world.all_ready(loaded)?.is_some();
        if self.world.broadcast(is_resumed)? {
            trainer.broadcast_state()?;
        }
        Ok(())
    }

    fn load(&self, checkpoint: &Checkpoint, trainer: &mut Trainer) -> Result<(), TrainError> {
        let place = &checkpoint.path;
        trainer.load_state_dict(&checkpoint.state_dict).map_err(|e| TrainError::at(place, e))?;
        tracing::info!(
            "continuing from {} (step {})",
            place.display(),
            trainer.state.counters.step
        );
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
            "`epochs` was {before} and is now {}: from here on the learning rate follows the schedule \
             of {} steps, as if the run had started with it: {:.3e} at step {}, after {:.3e} at step \
             {step}",
            optim.epochs,
            optim.epochs * steps,
            rate(optim.epochs, step),
            step + 1,
            rate(before, step.saturating_sub(1)),
        );
    }
}

/// The checkpoint to continue from; `None` when the run starts at step 0.
///
/// # Errors
/// It cannot be loaded, or its identity is not `identity`; with `resume = auto`, there are traces of a
/// run, but no checkpoint that can be loaded.
pub(super) fn find_checkpoint(
    config: &TrainConfig,
    out_dir: &OutDir,
    identity: &Value,
) -> Result<Option<Checkpoint>, TrainError> {
    let checkpoint = match &config.run.resume {
        None => return Ok(None),
        Some(Resume::Path(path)) if path.is_dir() && !path.join("state.json").exists() => {
            return Err(TrainError::Usage(format!(
                "`resume` {}: there is no state.json in it; expected auto, or the folder of a \
                 checkpoint such as OUT_DIR/checkpoints/step-00000100",
                path.display()
            )));
        }
        Some(Resume::Path(path)) => checkpoint::load(path)?,
        Some(Resume::Auto) => {
            if OutDir::holds_earlier(&config.run.out_dir, config.stage) {
                tracing::info!(
                    "the out-dir holds checkpoints of the previous stage only: starting at step 0"
                );
                return Ok(None);
            }
            let folder = out_dir.join("checkpoints");
            let Some(checkpoint) = checkpoint::newest(&folder)? else {
                refuse_to_overwrite(config, out_dir)?;
                tracing::info!("no checkpoint in {}: starting at step 0", folder.display());
                return Ok(None);
            };
            checkpoint
        }
    };
    let place = checkpoint.path.display().to_string();
    compare(&place, &checkpoint.identity, identity)?;
    Ok(Some(checkpoint))
}

/// Without a checkpoint that can be loaded, a run starts at step 0 and overwrites what is there. Only
/// after a run that ended before its first checkpoint that is right.
///
/// # Errors
/// Checkpoints that cannot be used, a log beyond the first checkpoint, or weights.
fn refuse_to_overwrite(config: &TrainConfig, out_dir: &OutDir) -> Result<(), TrainError> {
    let traces = checkpoint::traces(&out_dir.join("checkpoints"));
    let metrics = out_dir.join("metrics.jsonl");
    let last_step = metrics::last_step(&metrics);
    // The first checkpoint is due at the end of the update in which the interval ends.
    let (interval, window) = (config.run.save_interval, config.optim.accumulation_steps);
    let first_save = interval.div_ceil(window.max(1)) * window.max(1);
    let found = if !traces.is_empty() {
        format!("checkpoints/{} cannot be used", traces.join(", checkpoints/"))
    } else if let Some(step) = last_step.filter(|&step| step > first_save) {
        format!("metrics.jsonl has lines up to step {step}")
    } else if out_dir.holds_weights() {
        "there are weights of an earlier run".to_owned()
    } else {
        return Ok(());
    };
    Err(TrainError::Usage(format!(
        "`resume = auto`: no checkpoint in {} can be loaded, but {found}. A run that starts at step 0 \
         would overwrite that: restore a good checkpoint, or give the path of one as `resume`, or start \
         a new run in another `out_dir`",
        out_dir.path().display()
    )))
}
