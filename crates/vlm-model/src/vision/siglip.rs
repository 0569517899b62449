//! SigLIP's vision transformer (Zhai et al. 2023; SigLIP 2 of fixed resolution is the same), as
//! Hugging Face's `SiglipVisionModel` computes `last_hidden_state`: no class token, patches with a
//! bias, a norm after the blocks. Its attention-pooling head is not computed.
//!
//! Dimensions: N images · P patches · V vision width · S side in pixels

use tch::Tensor;

use super::blocks::{Block, INIT, PatchEmbedding, SCOPE};
use crate::layers::LayerNorm;
use crate::params::Scope;
use vlm_shapes::VisionConfig;

/// The encoder.
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

    /// The shape this encoder was built with.
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
