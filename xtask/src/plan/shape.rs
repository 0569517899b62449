//! Shapes of a language model, its projector and its vision encoder, and what of them is trained.

use vlm_shapes::{ProjectorConfig, VisionConfig};

use super::Projector;

/// A shape of the language model and its vision encoder; the numbers are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Hidden size.
    pub dim: u64,
    /// Transformer blocks.
    pub n_layers: u64,
    /// Query heads.
    pub n_heads: u64,
    /// Key and value heads.
    pub n_kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Rows of the embedding table.
    pub vocab_size: u64,
    /// Width of a feed-forward layer, or of one expert.
    pub intermediate_size: u64,
    /// Mixture of experts.
    pub experts: Option<Experts>,
    /// How the tensors are named.
    pub naming: Naming,
    /// Whether input and output embeddings are one tensor.
    pub is_tied: bool,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
    /// Whether queries, keys and values have biases.
    pub has_qkv_bias: bool,
    /// What joins encoder and language model.
    pub projector: Projector,
    /// The vision encoder.
    pub vision: Vision,
}

/// Whose names the tensors of the language model have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// MiniMind of April 2025.
    MiniMind,
    /// Hugging Face's LLaMA, Qwen and MiniMind's present form.
    HuggingFace,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts that tokens are routed to.
    pub routed: u64,
    /// Of these, how many a token is sent to.
    pub per_token: u64,
    /// Whether there is one for all tokens.
    pub shared: bool,
}

impl Experts {
    /// MiniMind's: 4 routed, 2 a token, 1 shared.
    pub const MINIMIND: Self = Self { routed: 4, per_token: 2, shared: true };
}

/// A CLIP or SigLIP vision encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vision {
    /// Whether a class token stands in front of the patches (CLIP), or none does (SigLIP).
    pub has_class_token: bool,
    /// Width.
    pub hidden_size: u64,
    /// Width of its feed-forward layer.
    pub intermediate_size: u64,
    /// Blocks.
    pub num_hidden_layers: u64,
    /// Side of the picture in pixels.
    pub image_size: u64,
    /// Side of a patch in pixels.
    pub patch_size: u64,
}

impl Vision {
    /// ViT-B at 224 pixels.
    pub const fn clip_base(patch_size: u64) -> Self {
        Self {
            has_class_token: true,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            image_size: 224,
            patch_size,
        }
    }

    /// Patches along one side of an image.
    pub fn patches_per_side(&self) -> u64 {
        self.image_size / self.patch_size
    }

    /// Patches of an image.
    pub fn num_patches(&self) -> u64 {
        self.patches_per_side().pow(2)
    }

    /// Positions of the encoder: the patches, and the class token where there is one.
    pub fn num_positions(&self) -> u64 {
        self.num_patches() + u64::from(self.has_class_token)
    }

    /// Elements of all its tensors.
    pub fn num_parameters(&self) -> u64 {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let norm = 2 * width;
        let attention = 4 * (width * width + width);
        let mlp = width * inner + inner + inner * width + width;
        // CLIP has a class token, SigLIP a bias of the patches' convolution.
        let embeddings =
            width + width * 3 * self.patch_size * self.patch_size + self.num_positions() * width;
        // CLIP normalises before the blocks, SigLIP after them.
        embeddings + norm + self.num_hidden_layers * (attention + mlp + 2 * norm)
    }
}

/// What is trained beside the projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trained {
    /// First blocks.
    pub first_layers: u64,
    /// Last blocks.
    pub last_layers: u64,
    /// The whole language model.
    pub lm: bool,
    /// The vision encoder.
    pub vision: bool,
}

impl Trained {
    /// Whether block `index` of `n_layers` is.
    pub fn has_block(&self, index: u64, n_layers: u64) -> bool {
        self.lm || index < self.first_layers || index + self.last_layers >= n_layers
    }
}

/// LLaMA's rule for the feed-forward width, as MiniMind rounds it.
pub fn intermediate_size(dim: u64) -> u64 {
    (2 * (4 * dim) / 3).next_multiple_of(64)
}

impl Shape {
    /// MiniMind's of April 2025, of a hidden size: 8 blocks, 8 heads and 2 for keys and values, with
    /// ViT-B/16 and a linear projector.
    pub fn minimind(dim: u64) -> Self {
        Self {
            dim,
            n_layers: 8,
            n_heads: 8,
            n_kv_heads: 2,
            head_dim: dim / 8,
            vocab_size: 6400,
            intermediate_size: intermediate_size(dim),
            experts: None,
            naming: Naming::MiniMind,
            is_tied: true,
            qk_norm: false,
            has_qkv_bias: false,
            projector: Projector::Linear,
            vision: Vision::clip_base(16),
        }
    }

    /// Width of all query heads.
    pub fn query_dim(&self) -> u64 {
        self.head_dim * self.n_heads
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> u64 {
        self.head_dim * self.n_kv_heads
    }

    /// Tokens that an image takes in the language model.
    /// # Errors
    /// Patches that the projector cannot put together.
    pub fn tokens_per_image(&self) -> Result<u64, String> {
        let vision = VisionConfig {
            image_size: self.vision.image_size as i64,
            patch_size: self.vision.patch_size as i64,
            ..VisionConfig::default()
        };
        let projector =
            ProjectorConfig::new(self.projector, &vision).map_err(|error| error.to_string())?;
        Ok(projector.tokens_per_image as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tensors::Tensor;
    use super::*;

    fn minimind(dim: u64, n_layers: u64, experts: Option<Experts>) -> Shape {
        Shape { dim, n_layers, head_dim: dim / 8, experts, ..Shape::minimind(dim) }
    }

    const PRETRAINING: Trained =
        Trained { first_layers: 0, last_layers: 1, lm: false, vision: false };

    fn count(shape: &Shape, is_wanted: impl Fn(&Tensor) -> bool) -> u64 {
        shape.tensors(PRETRAINING).iter().filter(|t| is_wanted(t)).map(Tensor::numel).sum()
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let small = minimind(512, 8, None);
        // 3.213 M trained in pretraining, as the reference's log says; 25.8 M and 104 M language
        // models, as MiniMind's table says.
        assert_eq!((count(&small, |t| t.is_trained) as f64 / 1e6 * 1e3).round(), 3213.0);
        let lm = |shape: &Shape| count(shape, |t| !t.name.starts_with("vision_proj"));
        assert_eq!((lm(&small) as f64 / 1e5).round(), 258.0);
        assert_eq!((lm(&minimind(768, 16, None)) as f64 / 1e6).round(), 104.0);
        // 145 M: four routed experts and a shared one.
        assert_eq!((lm(&minimind(640, 8, Some(Experts::MINIMIND))) as f64 / 1e6).round(), 145.0);
    }

    #[test]
    fn vision_encoder_has_the_published_size() {
        // openai/clip-vit-base-patch16's vision tower, without its last norm (1536), which is not used.
        assert_eq!(Vision::clip_base(16).num_parameters(), 85_799_424 - 1536);
        assert_eq!(Vision::clip_base(16).num_patches(), 196);
        assert_eq!(Vision::clip_base(32).num_patches(), 49);
    }
}
