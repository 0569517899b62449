//! The projector between a vision encoder and a language model: its kind, its shape and its names.

use serde::{Deserialize, Serialize};

use crate::{LmConfig, LmFamily, ShapeError, VisionConfig};

/// The projectors that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProjectorKind {
    /// One linear layer: MiniMind-V of April 2025.
    Linear,
    /// LayerNorm → linear → GELU → linear: MiniMind-V's present form (`minimind-3v`).
    Mlp,
    /// Neighbouring patches side by side, so that 64 tokens are left, then linear → GELU → linear:
    /// `minimind-3v` with an encoder of 256 patches.
    MergedMlp,
    /// Squares of 2 × 2 patches (4 × 4 where there are 32 a side) side by side, then one linear
    /// layer without bias: nanoVLM, whose SigLIP of 14 × 14 patches so takes 49 tokens.
    PixelShuffle,
}

/// Tokens that [`ProjectorKind::MergedMlp`] makes of an image, MiniMind's `image_token_len`.
const MERGED_TOKENS: i64 = 64;

/// From as many patches a side on nanoVLM shuffles squares of 4 × 4.
const LARGE_SIDE: i64 = 32;

/// A projector's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectorConfig {
    /// Which.
    pub kind: ProjectorKind,
    /// Tokens that an image takes in the prompt.
    pub tokens_per_image: i64,
}

/// The prefix of the names of every projector's tensors, in MiniMind-V's files as in ours.
pub const PROJECTOR_SCOPE: &str = "vision_proj";

/// Whether a tensor belongs to a projector, by its name.
pub fn is_projector(name: &str) -> bool {
    name.strip_prefix(PROJECTOR_SCOPE).is_some_and(|rest| rest.starts_with('.'))
}

impl ProjectorKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Linear, Self::Mlp, Self::MergedMlp, Self::PixelShuffle];

    /// The name of a tensor that only this kind of projector has.
    pub fn characteristic_weight(self) -> &'static str {
        match self {
            Self::Linear => "vision_proj.vision_proj.0.weight",
            Self::Mlp => "vision_proj.mlp.3.weight",
            Self::MergedMlp => "vision_proj.mlp.2.weight",
            Self::PixelShuffle => "vision_proj.proj.weight",
        }
    }

    /// The projector that MiniMind-V of that time joins to a language model of the family.
    pub fn default_for(family: LmFamily) -> Self {
        match family {
            LmFamily::MiniMind | LmFamily::MiniMind2 => Self::Linear,
            LmFamily::MiniMind3 | LmFamily::Llama => Self::Mlp,
        }
    }
}

impl ProjectorConfig {
    /// The projector between two models.
    ///
    /// # Errors
    /// Patches that cannot be merged as the projector does.
    pub fn new(kind: ProjectorKind, vision: &VisionConfig) -> Result<Self, ShapeError> {
        let patches = vision.num_patches();
        let side = vision.patches_per_side();
        let square = if side < LARGE_SIDE { 2 } else { 4 };
        let tokens_per_image = match kind {
            ProjectorKind::Linear | ProjectorKind::Mlp => patches,
            ProjectorKind::MergedMlp if patches % MERGED_TOKENS == 0 => MERGED_TOKENS,
            ProjectorKind::PixelShuffle if side % square == 0 => patches / (square * square),
            ProjectorKind::MergedMlp => {
                return Err(ShapeError::Config(format!(
                    "the projector merges an image's patches to {MERGED_TOKENS} tokens, but the \
                     vision encoder gives {patches}, which is no multiple of it; take an encoder \
                     of 256 patches, or another projector"
                )));
            }
            ProjectorKind::PixelShuffle => {
                return Err(ShapeError::Config(format!(
                    "the projector puts squares of {square} × {square} patches together, but the \
                     vision encoder has {side} a side; take another encoder or projector"
                )));
            }
        };
        Ok(Self { kind, tokens_per_image })
    }

    /// Width of the patch features of `vision` that make one token, side by side.
    pub fn merged_width(&self, vision: &VisionConfig) -> i64 {
        vision.hidden_size * (vision.num_patches() / self.tokens_per_image)
    }

    /// The default projector of the language model's family.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn default_for(lm: &LmConfig, vision: &VisionConfig) -> Result<Self, ShapeError> {
        Self::new(ProjectorKind::default_for(lm.family), vision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_merged_to_64_tokens_or_refused() {
        let merged = |image_size| {
            let vision = VisionConfig { image_size, ..VisionConfig::siglip() };
            ProjectorConfig::new(ProjectorKind::MergedMlp, &vision)
        };
        assert_eq!(merged(256).unwrap().tokens_per_image, 64);
        let error = merged(224).unwrap_err().to_string();
        assert!(error.contains("gives 196"), "{error}");
    }

    #[test]
    fn squares_of_patches_are_put_together_or_refused() {
        let shuffled = |image_size| {
            let vision = VisionConfig { image_size, ..VisionConfig::siglip() };
            ProjectorConfig::new(ProjectorKind::PixelShuffle, &vision)
        };
        assert_eq!(shuffled(224).unwrap().tokens_per_image, 49);
        assert_eq!(shuffled(512).unwrap().tokens_per_image, 64);
        let error = shuffled(240).unwrap_err().to_string();
        assert!(error.contains("has 15 a side"), "{error}");
    }
}
