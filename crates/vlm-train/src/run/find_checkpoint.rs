//! Finds the checkpoint that a run continues from.

use serde_json::Value;

use super::identity::compare;
use crate::TrainError;
use crate::checkpoint::{self, Checkpoint};
use crate::config::{Resume, TrainConfig};
use crate::out_dir::OutDir;
use crate::step_lines;

/// The checkpoint to continue from; `None` when the run starts at step 0.
///
/// # Errors
/// The checkpoint cannot be loaded, or its identity differs from `identity`. With `resume = auto`:
/// the out-dir holds a run, but no checkpoint that can be loaded.
pub(super) fn find_checkpoint(
    config: &TrainConfig,
    out_dir: &OutDir,
    identity: &Value,
) -> Result<Option<Checkpoint>, TrainError> {
    let checkpoint = match &config.run.resume {
        None => return Ok(None),
        Some(Resume::Path(path)) if path.is_dir() && !path.join("state.json").exists() => {
            return Err(TrainError::Usage(format!(
                "`resume`: {} has no state.json; expected auto, or the folder of a checkpoint such \
                 as OUT_DIR/checkpoints/step-00000100",
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

/// Checks that a run without a checkpoint to continue from may start at step 0, where it overwrites
/// the files of an earlier run. This is allowed only if that run ended before its first checkpoint.
///
/// # Errors
/// The out-dir holds checkpoints that cannot be used, metrics of steps at which the first checkpoint
/// was complete, or weights.
fn refuse_to_overwrite(config: &TrainConfig, out_dir: &OutDir) -> Result<(), TrainError> {
    let traces = checkpoint::traces(&out_dir.join("checkpoints"));
    let metrics = out_dir.join("metrics.jsonl");
    let last_step = step_lines::last_step(&metrics);
    // A checkpoint is written only after an update, which ends every `accumulation_steps` steps.
    let steps_per_update = config.optim.accumulation_steps.max(1);
    let interval = config.run.save_interval.div_ceil(steps_per_update) * steps_per_update;
    // The first one may be written in the background until the second one is due.
    let last_without_checkpoint = 2 * interval;
    let found = if !traces.is_empty() {
        format!("checkpoints/{} cannot be used", traces.join(", checkpoints/"))
    } else if let Some(step) = last_step.filter(|&step| step > last_without_checkpoint) {
        format!("metrics.jsonl has lines up to step {step}")
    } else if out_dir.holds_weights() {
        "the folder has weights of an earlier run".to_owned()
    } else {
        return Ok(());
    };
    Err(TrainError::Usage(format!(
        "`resume = auto`: no checkpoint in {} can be loaded, but {found}. A run that starts at \
         step 0 would overwrite its files: restore a valid checkpoint, set `resume` to the path of \
         one, or start a new run in another `out_dir`",
        out_dir.path().display()
    )))
}
