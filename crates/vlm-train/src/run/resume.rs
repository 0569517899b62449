//! Going on where an earlier run stood.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use vlm_data::FeatureKey;

use super::{Run, all_ready};
use crate::TrainError;
use crate::checkpoint::{self, Checkpoint};
use crate::config::{OptimConfig, Resume, TrainConfig};
use crate::encoder_files;
use crate::leaves::leaves;
use crate::optimizer::AdamW;
use crate::out_dir::OutDir;
use crate::precision::Dtype;
use crate::scaler::LossScaler;
use crate::trainer::Position;

impl Run {
    /// The beginning, or where rank 0's checkpoint stood: all ranks get its weights, optimizer
    /// state and position, so that only rank 0 needs its disk.
    pub(super) fn starting_position(
        &self,
        resumed: Option<&Checkpoint>,
        optimizer: &mut AdamW,
    ) -> Result<Position, TrainError> {
        let mut position = Position {
            scaler: (self.dtype == Dtype::Float16).then(LossScaler::default),
            ..Position::default()
        };
        let restored = resumed.map(|checkpoint| self.restore(checkpoint, optimizer)).transpose();
        let restored = all_ready(self.team.as_ref(), restored)?;
        let Some(team) = &self.team else { return Ok(restored.unwrap_or(position)) };
        if let Some(restored) = team.first_ranks(&restored)? {
            position = restored;
            let mut all = self.model.params().named();
            all.extend(self.model.vision_params().named());
            all.extend(optimizer.state());
            team.share_tensors(&all)?;
        }
        Ok(position)
    }

    fn restore(
        &self,
        checkpoint: &Checkpoint,
        optimizer: &mut AdamW,
    ) -> Result<Position, TrainError> {
        let at = &checkpoint.path;
        let mut tensors = self.model.params().named();
        tensors.extend(encoder_files::checkpointed(&self.model));
        for (name, mut tensor) in tensors {
            let saved =
                checkpoint.model.iter().find(|(n, t)| *n == name && t.size() == tensor.size());
            let Some((_, saved)) = saved else {
                let shape = tensor.size();
                return Err(TrainError::at(at, format!("no tensor {name} of shape {shape:?}")));
            };
            tch::no_grad(|| tensor.copy_(saved));
        }
        optimizer.load_state(&checkpoint.optimizer)?;
        tracing::info!(
            "continuing from {} (step {})",
            at.display(),
            checkpoint.state.position.counters.step
        );
        Ok(checkpoint.state.position)
    }
}

/// The settings that decide which numbers a run computes. How many processes share a batch does not.
pub(super) fn identity(
    config: &TrainConfig,
    world_size: usize,
    features: Option<&FeatureKey>,
) -> Value {
    let global_batch_size = config.optim.batch_size.saturating_mul(world_size);
    let optim = OptimConfig { batch_size: global_batch_size, ..config.optim.clone() };
    serde_json::json!({
        "stage": config.stage,
        "data_path": config.data.data_path,
        "features": features,
        "shuffle": config.data.shuffle,
        "bucket_window": config.data.bucket_window,
        "max_seq_len": config.data.max_seq_len,
        "seed": config.run.seed,
        "optim": optim,
        "freeze": config.model.freeze,
    })
}

/// The checkpoint that the run asks to continue from, if it was made under `identity`.
pub(super) fn find_checkpoint(
    config: &TrainConfig,
    identity: &Value,
) -> Result<Option<Checkpoint>, TrainError> {
    let checkpoint = match &config.run.resume {
        None => return Ok(None),
        Some(Resume::Path(path)) => checkpoint::load(path)?,
        Some(Resume::Auto) => {
            if OutDir::holds_earlier(&config.run.out_dir, config.stage) {
                tracing::info!("only an earlier stage's checkpoints there: starting anew");
                return Ok(None);
            }
            let folder = config.run.out_dir.join("checkpoints");
            let Some(checkpoint) = checkpoint::newest(&folder)? else {
                tracing::info!("no checkpoint in {}: starting anew", folder.display());
                return Ok(None);
            };
            checkpoint
        }
    };
    if checkpoint.state.identity != *identity {
        let (before, now) = (leaves(&checkpoint.state.identity), leaves(identity));
        let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        let of = |side: &BTreeMap<String, String>, name: &String| {
            side.get(name).map_or("nothing".to_owned(), String::clone)
        };
        let changed: Vec<String> = names
            .into_iter()
            .filter(|name| before.get(*name) != now.get(*name))
            .map(|name| format!("{name} was {} and is now {}", of(&before, name), of(&now, name)))
            .collect();
        return Err(TrainError::Usage(format!(
            "{}: the run to continue had other settings: {}; give the same, or start anew in \
             another --out-dir",
            checkpoint.path.display(),
            changed.join("; ")
        )));
    }
    Ok(Some(checkpoint))
}
