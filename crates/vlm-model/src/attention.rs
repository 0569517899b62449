//! Attention, and what all blocks of one forward pass share.
//!
//! Dimensions: B batch · T tokens · H hidden size · N heads · K key/value heads · D head width

use tch::Tensor;

use crate::fused_attention::{How, fused_attention};
use crate::kv_cache::KvCache;
use crate::layers::{Linear, RmsNorm};
use crate::lm::inits;
use crate::packed_rows::PackedRows;
use crate::params::Scope;
use crate::rope::rotate;
use vlm_shapes::{LmConfig, RotaryLayout};

/// What every block of one forward pass shares.
pub(crate) struct Pass {
    pub(crate) rotations: Tensor,
    /// `None`: plainly causal. Else `[T, seen + T]` or `[B, 1, T, seen + T]`, true where a token
    /// may look.
    pub(crate) mask: Option<Tensor>,
    /// Where the rows lie end to end.
    pub(crate) packed: Option<PackedRows>,
    pub(crate) train: bool,
}

impl Pass {
    /// Another handle of the same tensors.
    pub(crate) fn share(&self) -> Self {
        Self {
            rotations: self.rotations.shallow_clone(),
            mask: self.mask.as_ref().map(Tensor::shallow_clone),
            packed: self.packed.as_ref().map(PackedRows::share),
            train: self.train,
        }
    }
}

/// The cache and a block's number in it.
pub(crate) type CacheSlot<'a> = Option<(&'a mut KvCache, usize)>;

/// Grouped-query attention (Ainslie et al. 2023) through libtorch's fused kernel.
#[derive(Debug)]
pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    /// Of the queries and of the keys, over the width of a head.
    norms: Option<(RmsNorm, RmsNorm)>,
    rotary_layout: RotaryLayout,
    n_heads: i64,
    n_kv_heads: i64,
    head_dim: i64,
    /// Of the weights that the values are mixed by.
    attention_dropout: f64,
    /// Of the output.
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

    pub(crate) fn forward(&self, x_bth: &Tensor, pass: &Pass, cache: CacheSlot) -> Tensor {
        let (batch, len, _) = x_bth.size3().expect("[B, T, H] by construction");
        let split = |x: Tensor, heads| x.view([batch, len, heads, self.head_dim]);
        let mut q = split(self.query.forward(x_bth), self.n_heads);
        let mut k = split(self.key.forward(x_bth), self.n_kv_heads);
        let v = split(self.value.forward(x_bth), self.n_kv_heads);
        if let Some((query_norm, key_norm)) = &self.norms {
            (q, k) = (query_norm.forward(&q), key_norm.forward(&k));
        }
        let q = rotate(&q, &pass.rotations, self.rotary_layout);
        let k = rotate(&k, &pass.rotations, self.rotary_layout);

        let q_bntd = q.transpose(1, 2);
        let (mut k_bktd, mut v_bktd) = (k.transpose(1, 2), v.transpose(1, 2));
        if let Some((cache, block)) = cache {
            (k_bktd, v_bktd) = cache.extend(block, &k_bktd, &v_bktd);
        }
        let mixed_bntd = self.mix(&q_bntd, &k_bktd, &v_bktd, pass);
        let out = self.output.forward(&mixed_bntd.transpose(1, 2).reshape([batch, len, -1]));
        out.dropout(self.dropout, pass.train)
    }

    /// What each query finds, `[B, N, T, D]`. Of packed rows each sees only itself.
    fn mix(&self, q_bntd: &Tensor, k_bktd: &Tensor, v_bktd: &Tensor, pass: &Pass) -> Tensor {
        let dropout = if pass.train { self.attention_dropout } else { 0.0 };
        let attend = |inputs: [&Tensor; 3], mask: Option<&Tensor>| {
            let is_causal = mask.is_none() && inputs[0].size()[2] > 1;
            fused_attention(inputs, &How { mask, dropout, is_causal })
        };
        let inputs = [q_bntd, k_bktd, v_bktd];
        match &pass.packed {
            Some(packed) => packed.groups().each(inputs, |inputs| attend(inputs, None)),
            None => attend(inputs, pass.mask.as_ref()),
        }
    }
}
