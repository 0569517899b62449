//! The configuration of the projector between a vision encoder and a language model.

use serde::{Deserialize, Serialize};

use crate::{LmConfig, LmFamily, ShapeError, VisionConfig};

/// Kind of a projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProjectorKind {
    /// One linear layer: MiniMind-V of April 2025.
    Linear,
    /// LayerNorm → linear → GELU → linear: the current MiniMind-V (`minimind-3v`).
    Mlp,
    /// Concatenates the features of neighbouring patches into 64 tokens, then linear → GELU →
    /// linear: `minimind-3v` with an encoder of 256 patches.
    MergedMlp,
    /// Concatenates the features of squares of 2 × 2 patches (4 × 4 from 32 patches per side on),
    /// then one linear layer without bias: nanoVLM. SigLIP's 14 × 14 patches make 49 tokens. The
    /// weights of SmolVLM and Idefics3 may have other squares.
    PixelShuffle,
    /// Linear → GELU → linear for each patch: LLaVA-1.5, whose name for it is `mlp2x_gelu`.
    #[serde(rename = "mlp2x-gelu", alias = "mlp2x_gelu")]
    Mlp2xGelu,
}

/// Number of tokens per image of [`ProjectorKind::MergedMlp`], MiniMind's `image_token_len`.
const MERGED_TOKENS: i64 = 64;

/// Number of patches per side from which on [`ProjectorKind::PixelShuffle`] merges squares of 4 ×
/// 4.
const LARGE_SIDE: i64 = 32;

/// The configuration of a projector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectorConfig {
    /// Kind of the projector.
    pub kind: ProjectorKind,
    /// Number of tokens that an image takes in the prompt.
    pub tokens_per_image: i64,
}

/// The prefix of the names of every projector's tensors, as in MiniMind-V's files.
pub const PROJECTOR_SCOPE: &str = "vision_proj";

/// Whether the tensor `name` belongs to a projector.
pub fn is_projector(name: &str) -> bool {
    name.strip_prefix(PROJECTOR_SCOPE).is_some_and(|rest| rest.starts_with('.'))
}

impl ProjectorKind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Linear, Self::Mlp, Self::MergedMlp, Self::PixelShuffle, Self::Mlp2xGelu];

    /// The name of a tensor that only this kind of projector has.
    pub fn characteristic_weight(self) -> &'static str {
        match self {
            Self::Linear => "vision_proj.vision_proj.0.weight",
            Self::Mlp => "vision_proj.mlp.3.weight",
            Self::MergedMlp => "vision_proj.mlp.2.weight",
            Self::PixelShuffle => "vision_proj.proj.weight",
            Self::Mlp2xGelu => "vision_proj.linear_2.weight",
        }
    }

    /// The projector that MiniMind-V uses with a language model of this family.
    pub fn default_for(family: LmFamily) -> Self {
        match family {
            LmFamily::MiniMind | LmFamily::MiniMind2 => Self::Linear,
            LmFamily::MiniMind3 | LmFamily::Llama => Self::Mlp,
        }
    }
}

impl ProjectorConfig {
    /// The configuration of a projector for the patch features of `vision`.
    ///
    /// # Errors
    /// The number of patches cannot be merged by a projector of this kind.
    pub fn new(kind: ProjectorKind, vision: &VisionConfig) -> Result<Self, ShapeError> {
        let patches = vision.num_patches();
        let tokens_per_image = match kind {
            ProjectorKind::Linear | ProjectorKind::Mlp | ProjectorKind::Mlp2xGelu => patches,
            ProjectorKind::MergedMlp if patches % MERGED_TOKENS == 0 => MERGED_TOKENS,
            ProjectorKind::PixelShuffle => {
                let square = if vision.patches_per_side() < LARGE_SIDE { 2 } else { 4 };
                return Self::pixel_shuffle(square, vision);
            }
            ProjectorKind::MergedMlp => {
                return Err(ShapeError::Config(format!(
                    "the projector merges an image's patches into {MERGED_TOKENS} tokens, but the \
                     vision encoder gives {patches} patches, which is not a multiple; use an \
                     encoder with 256 patches, or another projector"
                )));
            }
        };
        Ok(Self { kind, tokens_per_image })
    }

    /// The configuration of a [`ProjectorKind::PixelShuffle`] that merges squares of `square` ×
    /// `square` patches, which SmolVLM calls `scale_factor`.
    ///
    /// # Errors
    /// The side of the encoder's patches is not a multiple of `square`.
    pub fn pixel_shuffle(square: i64, vision: &VisionConfig) -> Result<Self, ShapeError> {
        let side = vision.patches_per_side();
        if square < 1 || square > side || side % square != 0 {
            return Err(ShapeError::Config(format!(
                "the projector merges squares of {square} × {square} patches, but the vision \
                 encoder has {side} patches per side; use another encoder or projector"
            )));
        }
        let tokens_per_image = vision.num_patches() / (square * square);
        Ok(Self { kind: ProjectorKind::PixelShuffle, tokens_per_image })
    }

    /// Width of the concatenated patch features of `vision` that make one token.
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
    fn patches_are_merged_into_64_tokens_or_refused() {
        let merged = |image_size| {
            let vision = VisionConfig { image_size, ..VisionConfig::siglip() };
            ProjectorConfig::new(ProjectorKind::MergedMlp, &vision)
        };
        assert_eq!(merged(256).unwrap().tokens_per_image, 64);
        let error = merged(224).unwrap_err().to_string();
        assert!(error.contains("gives 196 patches"), "{error}");
    }

    #[test]
    fn squares_of_patches_are_merged_or_refused() {
        let shuffled = |image_size| {
            let vision = VisionConfig { image_size, ..VisionConfig::siglip() };
            ProjectorConfig::new(ProjectorKind::PixelShuffle, &vision)
        };
        assert_eq!(shuffled(224).unwrap().tokens_per_image, 49);
        assert_eq!(shuffled(512).unwrap().tokens_per_image, 64);
        let error = shuffled(240).unwrap_err().to_string();
        assert!(error.contains("has 15 patches per side"), "{error}");
        // The encoder of SmolVLM-Instruct: 27 patches per side, which only 3 × 3 divides.
        let vision = VisionConfig { image_size: 384, patch_size: 14, ..VisionConfig::siglip() };
        let of_smolvlm = ProjectorConfig::pixel_shuffle(3, &vision).unwrap();
        assert_eq!((of_smolvlm.tokens_per_image, of_smolvlm.merged_width(&vision)), (81, 9 * 768));
    }
}
