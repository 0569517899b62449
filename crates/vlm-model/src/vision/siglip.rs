//! SigLIP's vision transformer (Zhai et al. 2023; SigLIP 2 of fixed resolution is the same).
//! Computes the `last_hidden_state` of Hugging Face's `SiglipVisionModel`: no class token, a patch
//! embedding with a bias, a norm after the blocks. The attention-pooling head is not used.
//!
//! Dimensions: N images · P patches · V vision width · S side in pixels

use tch::Tensor;

use super::blocks::{Block, INIT, PatchEmbedding, SCOPE};
use crate::layers::LayerNorm;
use crate::params::Scope;
use vlm_shapes::VisionConfig;

/// SigLIP's vision encoder.
#[derive(Debug)]
pub struct SiglipVision {
    config: VisionConfig,
    patch_embedding: PatchEmbedding,
    position_embedding: Tensor,
    blocks: Vec<Block>,
    post_layernorm: LayerNorm,
}

impl SiglipVision {
    /// Builds the encoder with random weights under Hugging Face's names (`vision_model.…`).
    pub fn new(scope: &Scope, config: &VisionConfig) -> Self {
        let scope = scope.sub(SCOPE);
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = scope.sub("embeddings");
        Self {
            patch_embedding: PatchEmbedding::new(&embeddings.sub("patch_embedding"), config, true),
            position_embedding: embeddings.sub("position_embedding").param(
                "weight",
                &[config.num_patches(), width],
                INIT,
            ),
            blocks: Block::all(&scope, config),
            post_layernorm: LayerNorm::new(&scope.sub("post_layernorm"), width, eps),
            config: config.clone(),
        }
    }

    /// The configuration of this encoder.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// `pixel_values` `[N, 3, S, S]`, normalised → `last_hidden_state` `[N, P, V]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Tensor {
        let mut x_npv = self.patch_embedding.forward(pixel_values) + &self.position_embedding;
        for block in &self.blocks {
            x_npv = block.forward(&x_npv);
        }
        self.post_layernorm.forward(&x_npv)
    }
}
