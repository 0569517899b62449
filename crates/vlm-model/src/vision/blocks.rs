//! The layers that CLIP's and SigLIP's vision transformers share, with Hugging Face's names: the
//! patch embedding, and pre-normalised blocks of attention and MLP.
//!
//! Dimensions: N images · P patches · V vision width · S side in pixels

use tch::{Device, Tensor};
use vlm_torch::RowAttention;

use crate::fused_attention::{SdpaOptions, fused_attention, kernel_kind};
use crate::layers::{LayerNorm, Linear, add_residual, linear};
use crate::params::{Init, Scope};
use vlm_shapes::VisionConfig;

/// The prefix of the names of every vision tower.
pub(super) const SCOPE: &str = "vision_model";

/// The initial weights of an encoder.
pub(super) const INIT: Init = Init::Normal(0.02);

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    num_heads: i64,
}

impl Attention {
    fn new(scope: &Scope, config: &VisionConfig) -> Self {
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
        let head_dim = width / self.num_heads;
        let projected =
            [&self.q_proj, &self.k_proj, &self.v_proj].map(|linear| linear.forward(x_npv));
        let kind = projected[0].kind();
        let in_rows = x_npv.device() == Device::Cpu && vlm_torch::has_row_attention(head_dim);
        let mixed_npv = if in_rows {
            let starts: Vec<i64> = (0..=images).map(|image| image * tokens).collect();
            let kind = kernel_kind(kind);
            let heads = projected
                .map(|x| x.view([images * tokens, self.num_heads, head_dim]).to_kind(kind));
            mix_in_rows(&heads, &starts).view([images, tokens, width])
        } else {
            let heads =
                |x: Tensor| x.view([images, tokens, self.num_heads, head_dim]).transpose(1, 2);
            let [q, k, v] = projected.map(heads);
            let mixed = fused_attention([&q, &k, &v], &SdpaOptions::default());
            mixed.transpose(1, 2).reshape([images, tokens, width])
        };
        self.out_proj.forward(&mixed_npv)
    }
}

/// Attention of all patches of an image to each other, `[N · P, heads, D]`; see
/// [`vlm_torch::row_attention`].
fn mix_in_rows([q, k, v]: &[Tensor; 3], starts: &[i64]) -> Tensor {
    let input = RowAttention {
        q,
        k,
        v,
        starts,
        tokens: None,
        prefix: None,
        rotary: None,
        is_causal: false,
    };
    // It fails only when there is no memory left, as every tensor operation of this file.
    vlm_torch::row_attention(&input).unwrap_or_else(|error| panic!("{error}"))
}

/// The activation of the MLP.
#[derive(Debug, Clone, Copy)]
enum Activation {
    /// `x · sigmoid(1.702 x)`, used by OpenAI's CLIP.
    QuickGelu,
    /// The exact GELU.
    Gelu,
    /// The approximation of GELU with the hyperbolic tangent, used by SigLIP.
    GeluTanh,
}

impl Activation {
    fn named(hidden_act: &str) -> Self {
        match hidden_act {
            "quick_gelu" => Self::QuickGelu,
            "gelu_pytorch_tanh" => Self::GeluTanh,
            _ => Self::Gelu,
        }
    }

    /// The activation of `x`, whose memory is used again where no gradient needs its values.
    fn apply(self, mut x: Tensor) -> Tensor {
        let is_kept = x.requires_grad();
        let fused = match self {
            Self::QuickGelu => vlm_torch::quick_gelu(x),
            Self::GeluTanh => vlm_torch::gelu_tanh(x),
            Self::Gelu if is_kept => return x.gelu("none"),
            Self::Gelu => return x.gelu_("none"),
        };
        // As every tensor operation, it fails only when there is no memory left.
        fused.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A transformer block.
#[derive(Debug)]
pub(super) struct Block {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Block {
    /// All blocks of a vision tower, `encoder.layers.0` and so on.
    pub(super) fn all(scope: &Scope, config: &VisionConfig) -> Vec<Self> {
        let layers = scope.sub("encoder").sub("layers");
        let block = |index| Self::new(&layers.sub(index), config);
        (0..config.num_hidden_layers).map(block).collect()
    }

    fn new(scope: &Scope, config: &VisionConfig) -> Self {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let mlp = scope.sub("mlp");
        Self {
            self_attn: Attention::new(&scope.sub("self_attn"), config),
            layer_norm1: LayerNorm::new(&scope.sub("layer_norm1"), width, eps),
            fc1: Linear::new(&mlp.sub("fc1"), width, config.intermediate_size, INIT),
            fc2: Linear::new(&mlp.sub("fc2"), config.intermediate_size, width, INIT),
            layer_norm2: LayerNorm::new(&scope.sub("layer_norm2"), width, eps),
            activation: Activation::named(&config.hidden_act),
        }
    }

    pub(super) fn forward(&self, x_npv: &Tensor) -> Tensor {
        let attended = self.self_attn.forward(&self.layer_norm1.forward_for_products(x_npv));
        let x_npv = add_residual(x_npv, attended);
        let inner = self.fc1.forward(&self.layer_norm2.forward_for_products(&x_npv));
        add_residual(&x_npv, self.fc2.forward(&self.activation.apply(inner)))
    }
}

/// The patch embedding. Hugging Face writes it as a convolution whose kernel and stride are the
/// patch size; here it is the same as one matrix product over the patches.
#[derive(Debug)]
pub(super) struct PatchEmbedding {
    /// `[V, 3, patch, patch]`.
    weight: Tensor,
    bias: Option<Tensor>,
    side: i64,
}

impl PatchEmbedding {
    pub(super) fn new(scope: &Scope, config: &VisionConfig, has_bias: bool) -> Self {
        let VisionConfig { hidden_size, num_channels, patch_size, .. } = *config;
        Self {
            weight: scope.param(
                "weight",
                &[hidden_size, num_channels, patch_size, patch_size],
                INIT,
            ),
            bias: has_bias.then(|| scope.param("bias", &[hidden_size], Init::Const(0.0))),
            side: config.patches_per_side(),
        }
    }

    /// `[N, 3, S, S]` → `[N, P, V]`. If the patch size does not divide S, the pixels that are left
    /// over at the right and at the bottom are not used.
    pub(super) fn forward(&self, pixel_values: &Tensor) -> Tensor {
        let (width, channels, patch, _) = self.weight.size4().expect("four by construction");
        let seen = self.side * patch;
        let cut = pixel_values
            .narrow(2, 0, seen)
            .narrow(3, 0, seen)
            .reshape([-1, channels, self.side, patch, self.side, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([-1, self.side * self.side, channels * patch * patch]);
        linear(&cut, &self.weight.view([width, -1]), self.bias.as_ref())
    }
}
