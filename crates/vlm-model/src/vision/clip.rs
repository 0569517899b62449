//! CLIP's vision transformer (Radford et al. 2021), as Hugging Face's `CLIPVisionModel` computes
//! `last_hidden_state`: a class token before the patches, a norm before the blocks, and no norm
//! after them (CLIP's post-layernorm serves its pooled output only).
//!
//! Dimensions: N images · P patches · V vision width · S side in pixels

use tch::Tensor;

use crate::config::ClipVisionConfig;
use crate::layers::{LayerNorm, Linear};
use crate::params::{Init, Scope};

/// What a fresh encoder's weights are drawn from.
const INIT: Init = Init::Normal(0.02);

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    num_heads: i64,
}

impl Attention {
    fn new(scope: &Scope, config: &ClipVisionConfig) -> Self {
        let width = config.hidden_size;
        let linear = |name: &str| Linear::new(&scope.sub(name), width, width, INIT);
        Self {
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            q_proj: linear("q_proj"),
            out_proj: linear("out_proj"),
            num_heads: config.num_attention_heads,
        }
    }

    fn forward(&self, x_npv: &Tensor) -> Tensor {
        let (images, tokens, width) = x_npv.size3().expect("[N, P, V] by construction");
        let heads = |x: Tensor| {
            x.view([images, tokens, self.num_heads, width / self.num_heads]).transpose(1, 2)
        };
        let mixed = Tensor::scaled_dot_product_attention(
            &heads(self.q_proj.forward(x_npv)),
            &heads(self.k_proj.forward(x_npv)),
            &heads(self.v_proj.forward(x_npv)),
            None::<Tensor>,
            0.0,
            false,
            None,
            false,
        );
        self.out_proj.forward(&mixed.transpose(1, 2).reshape([images, tokens, width]))
    }
}

#[derive(Debug)]
struct Block {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    quick_gelu: bool,
}

impl Block {
    fn new(scope: &Scope, config: &ClipVisionConfig) -> Self {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let mlp = scope.sub("mlp");
        Self {
            self_attn: Attention::new(&scope.sub("self_attn"), config),
            layer_norm1: LayerNorm::new(&scope.sub("layer_norm1"), width, eps),
            fc1: Linear::new(&mlp.sub("fc1"), width, config.intermediate_size, INIT),
            fc2: Linear::new(&mlp.sub("fc2"), config.intermediate_size, width, INIT),
            layer_norm2: LayerNorm::new(&scope.sub("layer_norm2"), width, eps),
            quick_gelu: config.hidden_act == "quick_gelu",
        }
    }

    fn forward(&self, x_npv: &Tensor) -> Tensor {
        let x_npv = x_npv + self.self_attn.forward(&self.layer_norm1.forward(x_npv));
        let inner = self.fc1.forward(&self.layer_norm2.forward(&x_npv));
        let active =
            if self.quick_gelu { &inner * (&inner * 1.702).sigmoid() } else { inner.gelu("none") };
        x_npv + self.fc2.forward(&active)
    }
}

/// The encoder.
#[derive(Debug)]
pub struct ClipVision {
    config: ClipVisionConfig,
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    blocks: Vec<Block>,
}

impl ClipVision {
    /// Builds the encoder with random weights under Hugging Face's names (`vision_model.…`; the
    /// spelling `pre_layrnorm` is theirs).
    pub fn new(scope: &Scope, config: &ClipVisionConfig) -> Self {
        let scope = scope.sub("vision_model");
        let width = config.hidden_size;
        let (patch, channels) = (config.patch_size, config.num_channels);
        let embeddings = scope.sub("embeddings");
        let layers = scope.sub("encoder").sub("layers");
        Self {
            class_embedding: embeddings.param("class_embedding", &[width], INIT),
            patch_embedding: embeddings.sub("patch_embedding").param(
                "weight",
                &[width, channels, patch, patch],
                INIT,
            ),
            position_embedding: embeddings.sub("position_embedding").param(
                "weight",
                &[config.num_patches() + 1, width],
                INIT,
            ),
            pre_layrnorm: LayerNorm::new(&scope.sub("pre_layrnorm"), width, config.layer_norm_eps),
            blocks: (0..config.num_hidden_layers)
                .map(|index| Block::new(&layers.sub(index), config))
                .collect(),
            config: config.clone(),
        }
    }

    /// The shape this encoder was built with.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// `pixel_values` `[N, 3, S, S]`, normalised → `last_hidden_state` `[N, 1 + P, V]`, the class
    /// token first.
    pub fn forward(&self, pixel_values: &Tensor) -> Tensor {
        let patches_npv = self.embed_patches(pixel_values);
        let images = patches_npv.size()[0];
        let class_n1v = self.class_embedding.view([1, 1, -1]).expand([images, 1, -1], false);
        let tokens = Tensor::cat(&[&class_n1v, &patches_npv], 1) + &self.position_embedding;
        let mut x_npv = self.pre_layrnorm.forward(&tokens);
        for block in &self.blocks {
            x_npv = block.forward(&x_npv);
        }
        x_npv
    }

    /// The features that the language model is shown: [`Self::forward`] without the class token,
    /// `[N, P, V]`.
    pub fn patch_features(&self, pixel_values: &Tensor) -> Tensor {
        let all = self.forward(pixel_values);
        all.narrow(1, 1, all.size()[1] - 1)
    }

    /// The convolution with stride = kernel = patch, written as what it is: one matrix product
    /// over cut-out patches. `[N, 3, S, S]` → `[N, P, V]`.
    fn embed_patches(&self, pixel_values: &Tensor) -> Tensor {
        let ClipVisionConfig { num_channels, image_size, patch_size, hidden_size, .. } =
            self.config;
        let side = image_size / patch_size;
        let cut = pixel_values
            .view([-1, num_channels, side, patch_size, side, patch_size])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([-1, side * side, num_channels * patch_size * patch_size]);
        cut.linear(&self.patch_embedding.view([hidden_size, -1]), None::<Tensor>)
    }
}
