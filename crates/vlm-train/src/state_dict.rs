//! The state of a training: weights, optimizer state and progress. It is saved and loaded with
//! checkpoints, and copied from rank 0 to the other ranks.

use tch::Tensor;
use vlm_model::Vlm;
use vlm_model::lm::with_tied_output;

use crate::TrainError;
use crate::encoder_files;
use crate::parallel::World;
use crate::train_state::TrainState;
use crate::trainer::Trainer;

/// The state of a training, as a checkpoint holds it. The tensors of [`Trainer::state_dict`] share
/// memory with the trainer.
#[derive(Debug)]
pub struct StateDict {
    /// Weights by name: those of the language model and the projector, and those of the vision
    /// encoder if it is trained.
    pub model: Vec<(String, Tensor)>,
    /// Optimizer state by name.
    pub optimizer: Vec<(String, Tensor)>,
    /// Progress of the training.
    pub train_state: TrainState,
}

impl Trainer<'_> {
    /// The current state of the optimizer, by name. With `shard_optimizer` it is collected from all
    /// ranks, and is complete on rank 0 only. Collective.
    ///
    /// # Errors
    /// A rank that ended or hangs.
    pub fn optimizer_state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        match &self.shards {
            Some(shards) => self.optimizer.gather_state(self.world, shards),
            None => Ok(self.optimizer.state()),
        }
    }

    /// The current state, for a checkpoint. `optimizer` is that of [`Self::optimizer_state`].
    pub fn state_dict(&self, optimizer: Vec<(String, Tensor)>) -> StateDict {
        let mut model = with_tied_output(self.model.params().named(), self.model.lm().config());
        model.extend(encoder_files::checkpointed(self.model));
        StateDict { model, optimizer, train_state: self.state }
    }

    /// Restores a state that [`Self::state_dict`] returned, in this or another process.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load_state_dict(&mut self, saved: &StateDict) -> Result<(), TrainError> {
        for (name, mut tensor) in saved_weights(self.model) {
            let found = saved.model.iter().find(|(n, t)| *n == name && t.size() == tensor.size());
            let Some((_, found)) = found else {
                let shape = tensor.size();
                return Err(TrainError::Failed(format!(
                    "the checkpoint has no tensor {name} of shape {shape:?}"
                )));
            };
            tch::no_grad(|| tensor.copy_(found));
        }
        // With `shard_optimizer`, `broadcast_state` divides it among the ranks.
        match &self.shards {
            Some(shards) => self.optimizer.check_state(shards, &saved.optimizer)?,
            None => self.optimizer.load_state(&saved.optimizer)?,
        }
        self.state = saved.train_state.with_scaler_for(self.dtype);
        Ok(())
    }

    /// Copies the state of rank 0, which `saved` was loaded into there, to all ranks. Collective.
    ///
    /// # Errors
    /// A rank that ended or hangs; tensors that differ between ranks after the broadcast.
    pub fn broadcast_state(&mut self, saved: Option<&StateDict>) -> Result<(), TrainError> {
        let mut tensors = saved_weights(self.model);
        match &self.shards {
            Some(shards) => {
                let state = saved.map_or(&[][..], |saved| &saved.optimizer);
                self.optimizer.scatter_state(self.world, shards, state)?;
            }
            None => tensors.extend(self.optimizer.state()),
        }
        self.world.broadcast_tensors(&tensors)?;
        self.state = self.world.broadcast(self.state)?;
        Ok(())
    }
}

/// Copies the weights of rank 0, including those of a frozen vision encoder, to all ranks.
/// Collective.
///
/// # Errors
/// As [`Trainer::broadcast_state`].
pub(crate) fn broadcast_weights(world: &World, model: &Vlm) -> Result<(), TrainError> {
    let mut tensors = model.params().named();
    tensors.extend(model.vision_params().named());
    world.broadcast_tensors(&tensors)
}

/// The weights that a checkpoint holds: all except those of a frozen vision encoder.
fn saved_weights(model: &Vlm) -> Vec<(String, Tensor)> {
    let mut tensors = model.params().named();
    tensors.extend(encoder_files::checkpointed(model));
    tensors
}
