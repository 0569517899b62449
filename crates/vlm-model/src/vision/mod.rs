//! Vision encoders, by their published formats.

mod blocks;
mod clip;
mod siglip;

pub use clip::ClipVision;
pub use siglip::SiglipVision;

use tch::Tensor;

use crate::config::{VisionConfig, VisionFamily};
use crate::params::Scope;

/// An encoder of any family.
#[derive(Debug)]
pub enum VisionEncoder {
    /// See [`ClipVision`].
    Clip(ClipVision),
    /// See [`SiglipVision`].
    Siglip(SiglipVision),
}

impl VisionEncoder {
    /// Builds the encoder with random weights under Hugging Face's names.
    pub fn new(scope: &Scope, config: &VisionConfig) -> Self {
        match config.family {
            VisionFamily::Clip => Self::Clip(ClipVision::new(scope, config)),
            VisionFamily::Siglip => Self::Siglip(SiglipVision::new(scope, config)),
        }
    }

    /// The shape this encoder was built with.
    pub fn config(&self) -> &VisionConfig {
        match self {
            Self::Clip(encoder) => encoder.config(),
            Self::Siglip(encoder) => encoder.config(),
        }
    }

    /// The features that the language model is shown: `pixel_values` `[N, 3, S, S]`, normalised →
    /// `[N, P, V]`.
    pub fn patch_features(&self, pixel_values: &Tensor) -> Tensor {
        match self {
            Self::Clip(encoder) => encoder.patch_features(pixel_values),
            Self::Siglip(encoder) => encoder.forward(pixel_values),
        }
    }
}

/// Whether the tensor of that name belongs to a whole CLIP or SigLIP and not to what is computed
/// here: the text tower, the heads for pooled outputs, and position numbers.
pub fn is_beside_encoder(family: VisionFamily, name: &str) -> bool {
    let Some(name) = name.strip_prefix(blocks::SCOPE).and_then(|rest| rest.strip_prefix('.'))
    else {
        return true;
    };
    name.ends_with(".position_ids")
        || match family {
            VisionFamily::Clip => name.starts_with("post_layernorm."),
            VisionFamily::Siglip => name.starts_with("head."),
        }
}
