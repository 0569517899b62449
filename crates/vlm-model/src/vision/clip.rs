//! CLIP's vision transformer (Radford et al. 2021). Computes the `last_hidden_state` of Hugging
//! Face's `CLIPVisionModel`: a class token before the patches, a norm before the blocks, and no
//! norm after them (CLIP uses its post-layernorm for the pooled output only).
//!
//! Dimensions: N images · P patches · V vision width · S side in pixels

use tch::Tensor;

use super::blocks::{Block, INIT, PatchEmbedding, SCOPE};
use crate::layers::LayerNorm;
use crate::params::Scope;
use vlm_shapes::VisionConfig;

/// CLIP's vision encoder.
#[derive(Debug)]
pub struct ClipVision {
    config: VisionConfig,
    class_embedding: Tensor,
    patch_embedding: PatchEmbedding,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    blocks: Vec<Block>,
}

impl ClipVision {
    /// Builds the encoder with random weights under Hugging Face's names (`vision_model.…`; the
    /// spelling `pre_layrnorm` is theirs).
    pub fn new(scope: &Scope, config: &VisionConfig) -> Self {
        let scope = scope.sub(SCOPE);
        let width = config.hidden_size;
        let embeddings = scope.sub("embeddings");
        Self {
            class_embedding: embeddings.param("class_embedding", &[width], INIT),
            patch_embedding: PatchEmbedding::new(&embeddings.sub("patch_embedding"), config, false),
            position_embedding: embeddings.sub("position_embedding").param(
                "weight",
                &[config.num_patches() + 1, width],
                INIT,
            ),
            pre_layrnorm: LayerNorm::new(&scope.sub("pre_layrnorm"), width, config.layer_norm_eps),
            blocks: Block::all(&scope, config),
            config: config.clone(),
        }
    }

    /// The configuration of this encoder.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// `pixel_values` `[N, 3, S, S]`, normalised → `last_hidden_state` `[N, 1 + P, V]`, the class
    /// token first.
    pub fn forward(&self, pixel_values: &Tensor) -> Tensor {
        let patches_npv = self.patch_embedding.forward(pixel_values);
        let images = patches_npv.size()[0];
        let class_n1v = self.class_embedding.view([1, 1, -1]).expand([images, 1, -1], false);
        let tokens = Tensor::cat(&[&class_n1v, &patches_npv], 1) + &self.position_embedding;
        let mut x_npv = self.pre_layrnorm.forward(&tokens);
        for block in &self.blocks {
            x_npv = block.forward(&x_npv);
        }
        x_npv
    }

    /// The patch features for the projector: the output of [`Self::forward`] without the class
    /// token, `[N, P, V]`.
    pub fn patch_features(&self, pixel_values: &Tensor) -> Tensor {
        let all = self.forward(pixel_values);
        all.narrow(1, 1, all.size()[1] - 1)
    }
}
