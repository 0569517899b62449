//! Vision encoders, by their published formats.

mod blocks;
mod clip;
mod siglip;

pub use clip::ClipVision;
pub use siglip::SiglipVision;

use tch::Tensor;

use crate::params::Scope;
use vlm_shapes::{VisionConfig, VisionFamily};

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

/// What every encoder has, below its scope: the embeddings of the patches.
pub(crate) const PATCH_EMBEDDING: &str = "embeddings.patch_embedding";

/// What stands before the names of every encoder's tensors.
pub(crate) fn scope() -> String {
    format!("{}.", blocks::SCOPE)
}

/// Whether a name below an encoder's scope is one of a CLIP or SigLIP tower.
pub(crate) fn is_within_tower(name: &str) -> bool {
    let parts = ["embeddings", "encoder", "pre_layrnorm", "post_layernorm", "head"];
    name.split('.').next().is_some_and(|first| parts.contains(&first))
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
