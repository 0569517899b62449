//! libtorch's fused attention, as the language model and the vision encoders use it.
//!
//! Dimensions: B batch · N heads · K key/value heads · T tokens · D head width

use tch::{Device, Kind, Tensor};

/// How attention is to be computed, beside its inputs.
#[derive(Debug, Default)]
pub(crate) struct How<'a> {
    /// True where a token may look; broadcasts to `[B, N, T, T]`.
    pub(crate) mask: Option<&'a Tensor>,
    pub(crate) dropout: f64,
    pub(crate) is_causal: bool,
}

/// Scaled dot-product attention: `q` `[B, N, T, D]`, `k` and `v` `[B, K, T, D]` → `[B, N, T, D]`,
/// each key/value head serving N / K heads.
///
/// On the CPU in float32 whatever autocast says: libtorch's kernels for 16 bits call a matrix
/// product of their own for every block of every head there, which takes longer than the products.
pub(crate) fn fused_attention([q, k, v]: [&Tensor; 3], how: &How) -> Tensor {
    let grouped = q.size()[1] != k.size()[1];
    let How { mask, dropout, is_causal } = *how;
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
        Tensor::scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, None, grouped)
    };
    let kind = q.kind();
    if q.device() != Device::Cpu || kind == Kind::Float {
        return attend(q, k, v);
    }
    let [q, k, v] = [q, k, v].map(|x| x.to_kind(Kind::Float));
    vlm_torch::autocast(Device::Cpu, None, || attend(&q, &k, &v))
        .expect("autocast knows the CPU")
        .to_kind(kind)
}
