//! Attention of the language model, and the inputs that all blocks of a forward pass share.
//!
//! Dimensions: B batch · T tokens · H hidden size · N heads · K key/value heads · D head width

use tch::Tensor;

use crate::fused_attention::{SdpaOptions, fused_attention};
use crate::kv_cache::KvCache;
use crate::layers::{Linear, RmsNorm};
use crate::lm::inits;
use crate::packed_rows::PackedRows;
use crate::params::Scope;
use crate::rope::rotate;
use vlm_shapes::{LmConfig, RotaryLayout};

/// Inputs that all blocks of one forward pass share.
pub(crate) struct ForwardContext {
    /// The rotations of the tokens' positions, see [`rotate`].
    pub(crate) rotations: Tensor,
    /// The attention mask, `[T, seen + T]` or `[B, 1, T, seen + T]`, true where a token attends to
    /// another. `None` means a causal mask.
    pub(crate) mask: Option<Tensor>,
    /// The packed rows, if the batch is packed.
    pub(crate) packed: Option<PackedRows>,
    /// Whether this is a forward pass of training: with dropout and the auxiliary loss.
    pub(crate) train: bool,
}

impl ForwardContext {
    /// A copy that shares the tensors' storage.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            rotations: self.rotations.shallow_clone(),
            mask: self.mask.as_ref().map(Tensor::shallow_clone),
            packed: self.packed.as_ref().map(PackedRows::shallow_clone),
            train: self.train,
        }
    }
}

/// The key/value cache and the index of a block in it.
pub(crate) type CacheSlot<'a> = Option<(&'a mut KvCache, usize)>;

/// Grouped-query attention (Ainslie et al. 2023) through libtorch's fused kernel.
#[derive(Debug)]
pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    /// Norms of the queries and of the keys, over the width of a head.
    norms: Option<(RmsNorm, RmsNorm)>,
    rotary_layout: RotaryLayout,
    n_heads: i64,
    n_kv_heads: i64,
    head_dim: i64,
    /// Dropout probability of the attention weights.
    attention_dropout: f64,
    /// Dropout probability of the output.
    dropout: f64,
}

impl Attention {
    pub(crate) fn new(scope: &Scope, config: &LmConfig) -> Self {
        let (dim, head_dim, names) = (config.dim, config.head_dim(), config.names());
        let (init, residual) = inits(config);
        let (q_dim, kv_dim) = (config.n_heads * head_dim, config.n_kv_heads * head_dim);
        let norm = |name: &str| RmsNorm::new(&scope.sub(name), head_dim, config.norm_eps);
        let input = |name: &str, width| {
            Linear::with_bias_if(config.qkv_bias, &scope.sub(name), dim, width, init)
        };
        Self {
            query: input(names.query, q_dim),
            key: input(names.key, kv_dim),
            value: input(names.value, kv_dim),
            output: Linear::with_bias_if(
                config.attention_output_bias,
                &scope.sub(names.attention_output),
                q_dim,
                dim,
                residual,
            ),
            norms: config.qk_norm.then(|| (norm(names.query_norm), norm(names.key_norm))),
            rotary_layout: config.rotary_layout,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim,
            attention_dropout: config.attention_dropout(),
            dropout: config.dropout,
        }
    }

    /// `[B, T, H]` → `[B, T, H]`. With a cache, the new keys and values are added to it.
    pub(crate) fn forward(
        &self,
        x_bth: &Tensor,
        context: &ForwardContext,
        cache: CacheSlot,
    ) -> Tensor {
        let (batch, len, _) = x_bth.size3().expect("[B, T, H] by construction");
        let split = |x: Tensor, heads| x.view([batch, len, heads, self.head_dim]);
        let mut q = split(self.query.forward(x_bth), self.n_heads);
        let mut k = split(self.key.forward(x_bth), self.n_kv_heads);
        let v = split(self.value.forward(x_bth), self.n_kv_heads);
        if let Some((query_norm, key_norm)) = &self.norms {
            (q, k) = (query_norm.forward(&q), key_norm.forward(&k));
        }
        let q = rotate(&q, &context.rotations, self.rotary_layout);
        let k = rotate(&k, &context.rotations, self.rotary_layout);

        let q_bntd = q.transpose(1, 2);
        let (mut k_bktd, mut v_bktd) = (k.transpose(1, 2), v.transpose(1, 2));
        if let Some((cache, block)) = cache {
            (k_bktd, v_bktd) = cache.extend(block, &k_bktd, &v_bktd);
        }
        let mixed_bntd = self.mix(&q_bntd, &k_bktd, &v_bktd, context);
        let out = self.output.forward(&mixed_bntd.transpose(1, 2).reshape([batch, len, -1]));
        out.dropout(self.dropout, context.train)
    }

    /// Scaled dot-product attention, `[B, N, T, D]`. Packed rows do not attend to each other.
    fn mix(
        &self,
        q_bntd: &Tensor,
        k_bktd: &Tensor,
        v_bktd: &Tensor,
        context: &ForwardContext,
    ) -> Tensor {
        let dropout = if context.train { self.attention_dropout } else { 0.0 };
        let attend = |inputs: [&Tensor; 3], mask: Option<&Tensor>| {
            let is_causal = mask.is_none() && inputs[0].size()[2] > 1;
            fused_attention(inputs, &SdpaOptions { mask, dropout, is_causal })
        };
        let inputs = [q_bntd, k_bktd, v_bktd];
        match &context.packed {
            Some(packed) => packed.groups().each(inputs, |inputs| attend(inputs, None)),
            None => attend(inputs, context.mask.as_ref()),
        }
    }
}
