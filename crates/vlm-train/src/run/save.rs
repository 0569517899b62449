//! Writes a checkpoint and the weights files, either at once or, from a copy of the weights, in a
//! thread while the training continues.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use tch::{Device, Tensor};
use vlm_display::count;
use vlm_model::ModelError;
use vlm_model::weights::{self, Format};
use vlm_torch::Heartbeat;

use super::Run;
use crate::TrainError;
use crate::checkpoint;
use crate::encoder_files::EncoderFiles;
use crate::optimizer::averages_in;
use crate::out_dir::OutDir;
use crate::parallel::Phase;
use crate::saver::Saved;
use crate::state_dict::StateDict;
use crate::trainer::Trainer;

impl Run {
    /// Saves the state of the training. With `background_saves` a thread writes it, unless this is
    /// the last save of the run; an earlier save is waited for. Only rank 0 writes. Collective: all
    /// ranks compare their weights with those of rank 0.
    pub(super) fn save(&self, trainer: &mut Trainer, is_last: bool) -> Result<(), TrainError> {
        let began = Instant::now();
        let differing = self.world.ranks_that_differ(&self.model.trainable())?;
        if !differing.is_empty() && self.is_first_rank() {
            tracing::warn!(
                "the weights of ranks {differing:?} differ from those of rank 0, which are saved; \
                 processors of different types round differently"
            );
        }
        let step = trainer.state.counters.step;
        let optimizer = trainer.optimizer_state()?;
        let in_background = self.config.run.background_saves && !is_last;
        // A save that has started is finished, even when the run is asked to stop.
        self.world.on_first_rank(step, Phase::Save, &|| false, |report_progress| {
            let heartbeat = || _ = report_progress();
            trainer.saver.wait(&heartbeat)?;
            let saved = SavedRun::new(self, trainer, optimizer);
            if in_background {
                let saved = saved.copied_to_host()?;
                trainer.saver.start(move |heartbeat| saved.write(heartbeat))
            } else {
                trainer.saver.save(is_last, || saved.write(Heartbeat(&heartbeat)))
            }
        })?;
        trainer.saver.add_wait(began.elapsed());
        Ok(())
    }
}

/// The state of a run that a save writes, and where.
struct SavedRun {
    out_dir: OutDir,
    identity: serde_json::Value,
    /// Number of checkpoints to keep; all of them if this one may have diverged.
    keep: Option<usize>,
    last_healthy_checkpoint: String,
    state_dict: StateDict,
    /// Base names of the weights files, with their tensors.
    weights: Vec<(String, Vec<(String, Tensor)>)>,
    encoder: Option<EncoderFiles>,
}

impl SavedRun {
    /// The current state of `trainer`, with which it shares memory. `optimizer` is that of
    /// [`Trainer::optimizer_state`].
    fn new(run: &Run, trainer: &Trainer, optimizer: Vec<(String, Tensor)>) -> Self {
        // A run that ends while updates are being skipped may have diverged, so its checkpoint must
        // not replace a healthy one.
        let is_healthy = trainer.state.skipped_in_a_row == 0;
        let name = run.weights_name();
        let mut weights = vec![(name.clone(), run.weights_with(Vec::new()))];
        if let Some(averages) = averages_in(&optimizer) {
            weights.push((format!("{name}_ema"), run.weights_with(averages)));
        }
        Self {
            out_dir: run.out_dir.clone(),
            identity: run.identity.clone(),
            keep: is_healthy.then_some(run.config.run.keep_checkpoints),
            last_healthy_checkpoint: trainer.last_healthy_checkpoint(),
            state_dict: trainer.state_dict(optimizer),
            weights,
            encoder: EncoderFiles::of(&run.model, &run.shapes, &run.config.model.vision),
        }
    }

    /// The same state in host memory, unaffected by further training.
    fn copied_to_host(mut self) -> Result<Self, TrainError> {
        let mut copies = HostCopies::default();
        let StateDict { model, optimizer, .. } = &mut self.state_dict;
        // The optimizer changes its state, which does not require gradients.
        copies.replace(optimizer, true)?;
        copies.replace(model, false)?;
        for (_, tensors) in &mut self.weights {
            copies.replace(tensors, false)?;
        }
        if let Some(encoder) = &mut self.encoder {
            copies.replace(&mut encoder.weights, false)?;
        }
        Ok(self)
    }

    /// Writes the checkpoint and the weights files. Calls `heartbeat` regularly.
    fn write(self, heartbeat: Heartbeat) -> Saved {
        let (checkpoint, result) = match self.write_checkpoint(heartbeat) {
            Ok(path) => (Some(path), self.write_weights(heartbeat)),
            Err(error) => (None, Err(error)),
        };
        Saved { checkpoint, result: self.out_dir.unless_replaced(result) }
    }

    fn write_checkpoint(&self, heartbeat: Heartbeat) -> Result<PathBuf, TrainError> {
        self.out_dir.check_not_replaced()?;
        let folder = self.out_dir.join("checkpoints");
        let path =
            checkpoint::save(&folder, &self.state_dict, &self.identity, self.keep, heartbeat)?;
        if self.keep.is_none() {
            tracing::warn!(
                "{}: the run skipped the last {} before this checkpoint because the loss or \
                 gradient was not finite. {}",
                path.display(),
                count(self.state_dict.train_state.skipped_in_a_row, "update"),
                self.last_healthy_checkpoint
            );
        }
        Ok(path)
    }

    fn write_weights(&self, heartbeat: Heartbeat) -> Result<(), TrainError> {
        for (name, tensors) in &self.weights {
            for (extension, format) in [("pth", Format::Pth), ("safetensors", Format::Safetensors)]
            {
                let path = self.out_dir.join(format!("{name}.{extension}"));
                weights::save_with(&path, tensors, format, Some(heartbeat))
                    .map_err(|e| TrainError::at(&path, e))?;
            }
        }
        if let Some(encoder) = &self.encoder {
            encoder.save(self.out_dir.path(), heartbeat)?;
        }
        Ok(())
    }
}

/// Copies of tensors in host memory. Tensors that share memory have one copy.
#[derive(Default)]
struct HostCopies(HashMap<(usize, Vec<i64>, Vec<i64>), Tensor>);

impl HostCopies {
    /// Replaces the tensors by copies. On the CPU a tensor that is not trained stays: nothing
    /// changes it, unless `all_change`.
    fn replace(
        &mut self,
        named: &mut [(String, Tensor)],
        all_change: bool,
    ) -> Result<(), TrainError> {
        for (name, tensor) in named {
            let copied = self.copy(tensor, all_change).map_err(|error| {
                TrainError::from(ModelError::from(error)).during(&format!(
                    "copying {name} for a checkpoint that is written in the background \
                     (`no_background_saves` needs no copy)"
                ))
            });
            *tensor = copied?;
        }
        Ok(())
    }

    fn copy(&mut self, tensor: &Tensor, changes: bool) -> Result<Tensor, tch::TchError> {
        let view = (tensor.data_ptr() as usize, tensor.size(), tensor.stride());
        if let Some(copy) = self.0.get(&view) {
            return Ok(copy.shallow_clone());
        }
        let detached = tensor.f_detach()?;
        let copy = if detached.device() != Device::Cpu {
            detached.f_to_device(Device::Cpu)?
        } else if changes || tensor.requires_grad() {
            detached.f_to_dtype(detached.f_kind()?, false, true)?
        } else {
            detached
        };
        self.0.insert(view, copy.shallow_clone());
        Ok(copy)
    }
}
