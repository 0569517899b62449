//! The choice of the parameters that are trained.

use serde::{Deserialize, Serialize};

use crate::{LmConfig, is_projector};

/// Which parts of the model are trained in addition to the projector, which always is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezePolicy {
    /// Whether the vision encoder is trained.
    pub train_vision: bool,
    /// Whether the whole language model is trained.
    pub train_lm: bool,
    /// Number of the language model's first blocks that are trained.
    pub unfreeze_first_layers: i64,
    /// Number of the language model's last blocks that are trained.
    pub unfreeze_last_layers: i64,
}

impl Default for FreezePolicy {
    /// The pretraining stage: the projector and the last block.
    fn default() -> Self {
        Self {
            train_vision: false,
            train_lm: false,
            unfreeze_first_layers: 0,
            unfreeze_last_layers: 1,
        }
    }
}

impl FreezePolicy {
    /// Whether the tensor with this name is trained, in a model that consists of the language model
    /// `lm` and a projector. The vision encoder's tensors are trained if `train_vision` is set.
    pub fn trains(&self, lm: &LmConfig, name: &str) -> bool {
        is_projector(name)
            || self.train_lm
            || lm.names().block_of(name).is_some_and(|index| self.trains_block(lm, index))
    }

    /// Whether block `index` of the language model is trained.
    pub fn trains_block(&self, lm: &LmConfig, index: i64) -> bool {
        self.train_lm
            || index < self.unfreeze_first_layers
            || index >= lm.n_layers - self.unfreeze_last_layers
    }
}
