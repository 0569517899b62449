//! The projector: from the width of a patch feature to the hidden size of the language model.

use tch::Tensor;

use crate::layers::Linear;
use crate::params::{Init, Scope};

/// One linear layer with bias, MiniMind-V's `VisionProj` (names `vision_proj.vision_proj.0.*`).
#[derive(Debug)]
pub struct LinearProjector {
    linear: Linear,
}

impl LinearProjector {
    /// `vision_dim` V → `hidden_size` H, started as PyTorch starts an `nn.Linear`.
    pub fn new(scope: &Scope, vision_dim: i64, hidden_size: i64) -> Self {
        let bound = 1.0 / (vision_dim as f64).sqrt();
        let scope = scope.sub("vision_proj").sub("vision_proj").sub(0);
        Self { linear: Linear::new(&scope, vision_dim, hidden_size, Init::Uniform(bound)) }
    }

    /// `[N, P, V]` → `[N, P, H]`.
    pub fn forward(&self, patches_npv: &Tensor) -> Tensor {
        self.linear.forward(patches_npv)
    }
}
