//! libtorch's fused attention, as the language model and the vision encoders use it.
//!
//! Dimensions: B batch · N heads · K key/value heads · T tokens · D head width

use tch::{Device, Kind, Tensor};

use crate::{LmConfig, ModelError};

/// Options of scaled dot-product attention.
#[derive(Debug, Default)]
pub(crate) struct SdpaOptions<'a> {
    /// The attention mask, true where a token attends to another; broadcasts to `[B, N, T, T]`.
    pub(crate) mask: Option<&'a Tensor>,
    /// Dropout probability of the attention weights.
    pub(crate) dropout: f64,
    /// Whether a causal mask is used instead of `mask`.
    pub(crate) is_causal: bool,
}

/// The type of the inputs of [`vlm_torch::row_attention`] for queries of the type `kind`. It computes
/// in float32, whatever they are.
pub(crate) fn kernel_kind(kind: Kind) -> Kind {
    if kind == Kind::BFloat16 { kind } else { Kind::Float }
}

/// Scaled dot-product attention: `q` `[B, N, T, D]`, `k` and `v` `[B, K, T, D]` → `[B, N, T, D]`,
/// where each key/value head serves N / K query heads.
///
/// On the CPU it is always computed in float32, even under autocast: libtorch's 16-bit kernel makes
/// a separate call for every block of every head, which takes longer than the matrix products.
pub(crate) fn fused_attention([q, k, v]: [&Tensor; 3], options: &SdpaOptions) -> Tensor {
    let grouped = q.size()[1] != k.size()[1];
    let SdpaOptions { mask, dropout, is_causal } = *options;
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
        Tensor::scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, None, grouped)
    };
    let kind = q.kind();
    if q.device() != Device::Cpu || kind == Kind::Float {
        return attend(q, k, v);
    }
    let [q, k, v] = [q, k, v].map(|x| x.to_kind(Kind::Float));
    vlm_torch::autocast(Device::Cpu, None, || attend(&q, &k, &v))
        .expect("autocast supports the CPU")
        .to_kind(kind)
}

/// The kernel that libtorch chooses for the causal attention of a language model in training, in the
/// type `kind` on `device`, for messages.
///
/// # Errors
/// libtorch fails.
pub(crate) fn attention_kernel(
    config: &LmConfig,
    kind: Kind,
    device: Device,
) -> Result<&'static str, ModelError> {
    let heads = |num_heads| -> Result<Tensor, tch::TchError> {
        let size = [1, num_heads, 64, config.head_dim()];
        Ok(Tensor::f_zeros(size, (kind, device))?.set_requires_grad(true))
    };
    let (q, k, v) = (heads(config.n_heads)?, heads(config.n_kv_heads)?, heads(config.n_kv_heads)?);
    let is_grouped = config.n_heads != config.n_kv_heads;
    let chosen = Tensor::f_internal_fused_sdp_choice(
        &q,
        &k,
        &v,
        None::<Tensor>,
        config.attention_dropout(),
        true,
        None,
        is_grouped,
    )?;
    // at::SDPBackend
    Ok(match chosen {
        0 => "separate products",
        1 => "flash attention",
        2 => "memory-efficient attention",
        3 => "cuDNN",
        _ => "unknown",
    })
}
