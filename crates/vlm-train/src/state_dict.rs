//! What a checkpoint holds of a run: weights, optimizer state and how far the training is. Saving,
//! continuing, and giving all ranks the same state go through here, so that none of them misses a part.

use tch::Tensor;
use vlm_model::Vlm;
use vlm_model::lm::with_tied_output;

use crate::TrainError;
use crate::encoder_files;
use crate::parallel::World;
use crate::train_state::TrainState;
use crate::trainer::Trainer;

/// What a checkpoint holds of a run. Taken from a trainer, its tensors share the trainer's memory.
#[derive(Debug)]
pub struct StateDict {
    /// Weights by their names: those of the language model and the projector, and those of the vision
    /// encoder where it is trained.
    pub model: Vec<(String, Tensor)>,
    /// The optimizer's state by name.
    pub optimizer: Vec<(String, Tensor)>,
    /// How far the training is.
    pub train_state: TrainState,
}

impl Trainer<'_> {
    /// The present state, for a checkpoint.
    pub fn state_dict(&self) -> StateDict {
        let mut model = with_tied_output(self.model.params().named(), self.model.lm().config());
        model.extend(encoder_files::checkpointed(self.model));
        StateDict { model, optimizer: self.optimizer.state(), train_state: self.state }
    }

    /// Continues from a state that [`Self::state_dict`] returned, in this or another process.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load_state_dict(&mut self, saved: &StateDict) -> Result<(), TrainError> {
        for (name, mut tensor) in trained_weights(self.model) {
            let found = saved.model.iter().find(|(n, t)| *n == name && t.size() == tensor.size());
            let Some((_, found)) = found else {
                let shape = tensor.size();
                return Err(TrainError::Failed(format!(
                    "the checkpoint has no tensor {name} of shape {shape:?}"
                )));
            };
            tch::no_grad(|| tensor.copy_(found));
        }
        self.optimizer.load_state(&saved.optimizer)?;
        self.state = saved.train_state.with_scaler_for(self.dtype);
        Ok(())
    }

    /// Gives all ranks the state of rank 0. All ranks call it.
    ///
    /// # Errors
    /// A rank that ended or hangs; tensors that differ between ranks after the broadcast.
    pub fn broadcast_state(&mut self) -> Result<(), TrainError> {
        let mut tensors = trained_weights(self.model);
        tensors.extend(self.optimizer.state());
        self.world.broadcast_tensors(&tensors)?;
        self.state = self.world.broadcast(self.state)?;
        Ok(())
    }
}

/// Gives all ranks the weights of rank 0, those of a frozen vision encoder included. All ranks call it.
///
/// # Errors
/// As [`Trainer::broadcast_state`].
pub(crate) fn broadcast_weights(world: &World, model: &Vlm) -> Result<(), TrainError> {
    let mut tensors = model.params().named();
    tensors.extend(model.vision_params().named());
    world.broadcast_tensors(&tensors)
}

/// The weights that a checkpoint holds: all but those of a frozen vision encoder.
fn trained_weights(model: &Vlm) -> Vec<(String, Tensor)> {
    let mut tensors = model.params().named();
    tensors.extend(encoder_files::checkpointed(model));
    tensors
}
