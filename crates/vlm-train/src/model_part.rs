//! The parts of a model that can be trained with their own learning rates.

use tch::Tensor;
use vlm_model::{Vlm, is_projector};

use crate::config::OptimConfig;

/// A part of the model that can have its own learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPart {
    /// The projector.
    Projector,
    /// The language model.
    Lm,
    /// The vision encoder.
    Vision,
}

impl ModelPart {
    /// The configured learning rate of this part, to which the schedule is applied.
    pub fn learning_rate(self, optim: &OptimConfig) -> f64 {
        let own = match self {
            Self::Projector => optim.lr_projector,
            Self::Lm => optim.lr_lm,
            Self::Vision => optim.lr_vision,
        };
        own.unwrap_or(optim.learning_rate)
    }
}

/// All trained parameters of `model`, with the part of the model to which each belongs.
pub(crate) fn named_parts(model: &Vlm) -> Vec<(String, Tensor, ModelPart)> {
    let of_lm = model.params().trainable().into_iter().map(|(name, tensor)| {
        let part = if is_projector(&name) { ModelPart::Projector } else { ModelPart::Lm };
        (name, tensor, part)
    });
    let of_vision = model.vision_params().trainable().into_iter();
    let of_vision = of_vision.map(|(name, tensor)| (name, tensor, ModelPart::Vision));
    of_lm.chain(of_vision).collect()
}
