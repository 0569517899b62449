//! Which parameters are trained.

use serde::{Deserialize, Serialize};

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
