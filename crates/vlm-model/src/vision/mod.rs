//! Vision encoders.

mod blocks;
mod clip;
mod siglip;

pub use clip::ClipVision;
pub use siglip::SiglipVision;

use tch::Tensor;

use crate::params::Scope;
use vlm_shapes::{VisionConfig, VisionFamily};

/// A vision encoder of any family.
#[derive(Debug)]
pub enum VisionEncoder {
    /// CLIP's encoder.
    Clip(ClipVision),
    /// SigLIP's encoder.
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

    /// The configuration of this encoder.
    pub fn config(&self) -> &VisionConfig {
        match self {
            Self::Clip(encoder) => encoder.config(),
            Self::Siglip(encoder) => encoder.config(),
        }
    }

    /// The patch features for the projector: `pixel_values` `[N, 3, S, S]`, normalised → `[N, P,
    /// V]`.
    pub fn patch_features(&self, pixel_values: &Tensor) -> Tensor {
        match self {
            Self::Clip(encoder) => encoder.patch_features(pixel_values),
            Self::Siglip(encoder) => encoder.forward(pixel_values),
        }
    }
}

/// The name of the patch embedding of every encoder, relative to [`scope`].
pub(crate) const PATCH_EMBEDDING: &str = "embeddings.patch_embedding";

/// The full name of the position embeddings of every encoder.
pub(crate) fn position_embedding() -> String {
    format!("{}.embeddings.position_embedding.weight", blocks::SCOPE)
}

/// The prefix of the names of every encoder's tensors.
pub(crate) fn scope() -> String {
    format!("{}.", blocks::SCOPE)
}

/// Whether `name`, relative to [`scope`], belongs to a vision tower of CLIP or SigLIP.
pub(crate) fn is_within_tower(name: &str) -> bool {
    let parts = ["embeddings", "encoder", "pre_layrnorm", "post_layernorm", "head"];
    name.split('.').next().is_some_and(|first| parts.contains(&first))
}

/// Whether the tensor `name` of an encoder is a factor of a product or added to one. Others are
/// added to activations or scale them, in float32.
pub(crate) fn is_product_weight(name: &str) -> bool {
    !["norm", "position_embedding", "class_embedding"].iter().any(|part| name.contains(part))
}

/// Whether the tensor `name` of a whole CLIP or SigLIP model is not used here: the text tower, the
/// heads for pooled outputs, and the table of position ids.
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
