//! Attention of the language model, and the inputs that all blocks of a forward pass share.
//!
//! Dimensions: B batch · T tokens · H hidden size · N heads · K key/value heads · D head width

use tch::{Device, Tensor};
use vlm_torch::{RowAttention, RowPrefix, RowRotary};

use crate::fused_attention::{SdpaOptions, fused_attention, kernel_kind};
use crate::kv_cache::KvCache;
use crate::layers::{Linear, RmsNorm, select_positions};
use crate::lm_init::inits;
use crate::packed_rows::PackedRows;
use crate::params::Scope;
use crate::rope::rotate;
use vlm_shapes::{LmConfig, RotaryLayout};

/// Inputs that all blocks of one forward pass share.
pub(crate) struct ForwardContext {
    /// The rotations of the tokens' positions, see [`rotate`].
    pub(crate) rotations: Tensor,
    /// The rotations of the positions of [`Past::Prefix`].
    pub(crate) prefix_rotations: Tensor,
    /// The attention mask, `[T, seen + T]` or `[B, 1, T, seen + T]`, true where a token attends to
    /// another. `None` means a causal mask.
    pub(crate) mask: Option<Tensor>,
    /// The packed rows, if the batch is packed.
    pub(crate) packed: Option<PackedRows>,
    /// The positions whose output is needed (see [`select_positions`]; each once); `None` if all
    /// are. A block computes nothing else where the rest of the model does not depend on it.
    pub(crate) needed: Option<Tensor>,
    /// Whether this is a forward pass of training: with dropout and the auxiliary loss.
    pub(crate) train: bool,
}

impl ForwardContext {
    /// A copy that shares the tensors' storage.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            rotations: self.rotations.shallow_clone(),
            prefix_rotations: self.prefix_rotations.shallow_clone(),
            mask: self.mask.as_ref().map(Tensor::shallow_clone),
            packed: self.packed.as_ref().map(PackedRows::shallow_clone),
            needed: self.needed.as_ref().map(Tensor::shallow_clone),
            train: self.train,
        }
    }
}

/// What precedes the tokens of a forward pass.
pub(crate) enum Past<'a> {
    /// Nothing.
    None,
    /// The tokens in a key/value cache; the second value is the index of the block in it.
    Cache(&'a mut KvCache, usize),
    /// The tokens that all rows begin with: their input to the layer, `[1, P, H]`.
    Prefix(&'a Tensor),
}

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

    /// `[B, T, H]` → `[B, T, H]`; with `needed` `[S]`, only the outputs at these positions (see
    /// [`select_positions`]; each once), `[1, S, H]`. With a cache, the new keys and values are
    /// added to it.
    pub(crate) fn forward(
        &self,
        x_bth: &Tensor,
        context: &ForwardContext,
        needed: Option<&Tensor>,
        past: Past,
    ) -> Tensor {
        let mixed = match self.has_row_attention(x_bth, context, needed, &past) {
            true => self.mix_in_rows(x_bth, context, needed, past),
            false => self.mix_in_groups(x_bth, context, needed, past),
        };
        let out = self.output.forward(&mixed);
        out.dropout(self.dropout, context.train)
    }

    /// Whether [`Self::mix_in_rows`] can be used.
    fn has_row_attention(
        &self,
        x_bth: &Tensor,
        context: &ForwardContext,
        needed: Option<&Tensor>,
        past: &Past,
    ) -> bool {
        let ascends =
            |needed: &Tensor| Vec::<i64>::try_from(needed).is_ok_and(|needed| needed.is_sorted());
        x_bth.device() == Device::Cpu
            && context.mask.is_none()
            && !matches!(past, Past::Cache(..))
            && !(context.train && self.attention_dropout > 0.0)
            && vlm_torch::has_row_attention(self.head_dim)
            && needed.is_none_or(ascends)
    }

    /// The mixed values `[B, T, N · D]`, or `[1, S, N · D]` of the needed positions, by
    /// [`vlm_torch::row_attention`]: without padding, and with the rotation in the same pass.
    fn mix_in_rows(
        &self,
        x_bth: &Tensor,
        context: &ForwardContext,
        needed: Option<&Tensor>,
        past: Past,
    ) -> Tensor {
        let (batch, len, _) = x_bth.size3().expect("[B, T, H] by construction");
        let queries = self.needed_queries(x_bth, needed);
        let (out_batch, kind) = (queries.size()[0], kernel_kind(queries.kind()));
        let tokens = |x: Tensor| x.flatten(0, 1).to_kind(kind);
        let angles = |rotations: &Tensor| rotations.flatten(0, 2);
        let (q, k, v) = (tokens(queries), tokens(self.keys(x_bth)), tokens(self.values(x_bth)));
        let prefix = match past {
            Past::Prefix(x_1ph) => Some((
                tokens(self.keys(x_1ph)),
                tokens(self.values(x_1ph)),
                angles(&context.prefix_rotations),
            )),
            _ => None,
        };
        let row_starts: Vec<i64> = match &context.packed {
            Some(packed) => packed.starts().to_vec(),
            None => (0..=batch).map(|row| row * len).collect(),
        };
        let mixed = vlm_torch::row_attention(&RowAttention {
            q: &q,
            k: &k,
            v: &v,
            starts: &row_starts,
            tokens: needed,
            prefix: prefix.as_ref().map(|(k, v, rotations)| RowPrefix {
                k,
                v,
                rotations: Some(rotations),
            }),
            rotary: Some(RowRotary {
                rotations: &angles(&context.rotations),
                is_interleaved: self.rotary_layout == RotaryLayout::Interleaved,
            }),
            is_causal: true,
        });
        // It fails only when there is no memory left, as every tensor operation of this file.
        let mixed = mixed.unwrap_or_else(|error| panic!("{error}"));
        mixed.view([out_batch, -1, self.n_heads * self.head_dim])
    }

    /// The queries of all positions `[B, T, N, D]`, or of the needed ones `[1, S, N, D]`.
    fn needed_queries(&self, x_bth: &Tensor, needed: Option<&Tensor>) -> Tensor {
        match needed {
            Some(needed) => self.queries(&select_positions(x_bth, needed)),
            None => self.queries(x_bth),
        }
    }

    /// As [`Self::mix_in_rows`], by libtorch's attention, on any device and with any mask. Packed
    /// rows are put into groups of similar length.
    fn mix_in_groups(
        &self,
        x_bth: &Tensor,
        context: &ForwardContext,
        needed: Option<&Tensor>,
        past: Past,
    ) -> Tensor {
        let (batch, len, _) = x_bth.size3().expect("[B, T, H] by construction");
        let mut q = self.needed_queries(x_bth, needed);
        if let Some(needed) = needed {
            // Attention itself takes little time, so the other queries are zeros and not left out.
            q = q
                .new_zeros([batch * len, self.n_heads, self.head_dim], (q.kind(), q.device()))
                .index_copy(0, needed, &q.squeeze_dim(0))
                .view([batch, len, self.n_heads, self.head_dim]);
        }
        let q = rotate(&q, &context.rotations, self.rotary_layout);
        let q_bntd = q.transpose(1, 2);
        let [mut k_bktd, mut v_bktd] = self.keys_values(x_bth, &context.rotations);
        let mut prefix = None;
        match past {
            Past::None => {}
            Past::Cache(cache, block) => (k_bktd, v_bktd) = cache.extend(block, &k_bktd, &v_bktd),
            Past::Prefix(x_1ph) => {
                prefix = Some(self.keys_values(x_1ph, &context.prefix_rotations));
            }
        }
        let mixed_bntd = self.mix([&q_bntd, &k_bktd, &v_bktd], prefix.as_ref(), context);
        let mixed = mixed_bntd.transpose(1, 2).reshape([batch, len, -1]);
        match needed {
            Some(needed) => select_positions(&mixed, needed),
            None => mixed,
        }
    }

    /// `[B, T, heads · D]` → `[B, T, heads, D]`.
    fn heads(&self, x: Tensor, heads: i64) -> Tensor {
        x.view([x.size()[0], x.size()[1], heads, self.head_dim])
    }

    /// The queries of `x` `[B, T, H]` before the rotation, `[B, T, N, D]`.
    fn queries(&self, x_bth: &Tensor) -> Tensor {
        let q = self.heads(self.query.forward(x_bth), self.n_heads);
        self.norms.as_ref().map_or_else(|| q.shallow_clone(), |(norm, _)| norm.forward(&q))
    }

    /// The keys of `x` `[B, T, H]` before the rotation, `[B, T, K, D]`.
    fn keys(&self, x_bth: &Tensor) -> Tensor {
        let k = self.heads(self.key.forward(x_bth), self.n_kv_heads);
        self.norms.as_ref().map_or_else(|| k.shallow_clone(), |(_, norm)| norm.forward(&k))
    }

    /// The values of `x` `[B, T, H]`, `[B, T, K, D]`.
    fn values(&self, x_bth: &Tensor) -> Tensor {
        self.heads(self.value.forward(x_bth), self.n_kv_heads)
    }

    /// The rotated keys and the values of `x` `[B, T, H]`, `[B, K, T, D]` each.
    fn keys_values(&self, x_bth: &Tensor, rotations: &Tensor) -> [Tensor; 2] {
        let k = rotate(&self.keys(x_bth), rotations, self.rotary_layout);
        [k.transpose(1, 2), self.values(x_bth).transpose(1, 2)]
    }

    /// Scaled dot-product attention of queries, keys and values, `[B, N, T, D]`, where all rows
    /// begin with the keys and values of `prefix` `[1, K, P, D]`. Packed rows do not attend to each
    /// other.
    fn mix(
        &self,
        inputs: [&Tensor; 3],
        prefix: Option<&[Tensor; 2]>,
        context: &ForwardContext,
    ) -> Tensor {
        let dropout = if context.train { self.attention_dropout } else { 0.0 };
        let attend = |inputs: [&Tensor; 3], mask: Option<&Tensor>| {
            let is_causal = mask.is_none() && inputs[0].size()[2] > 1;
            fused_attention(inputs, &SdpaOptions { mask, dropout, is_causal })
        };
        let attend_after = |[q, k, v]: [&Tensor; 3], [prefix_k, prefix_v]: &[Tensor; 2]| {
            let (rows, len, prefix_len) = (q.size()[0], q.size()[2], prefix_k.size()[2]);
            let join = |prefix: &Tensor, own: &Tensor| {
                Tensor::cat(&[&prefix.expand([rows, -1, -1, -1], false), own], 2)
            };
            // The causal mask of fused attention begins at the first key, so queries of zeros, whose
            // outputs are not used, stand for those of the prefix.
            let q = q.constant_pad_nd([0, 0, prefix_len, 0]);
            let (k, v) = (join(prefix_k, k), join(prefix_v, v));
            attend([&q, &k, &v], None).narrow(2, prefix_len, len)
        };
        let attend_causally = |inputs: [&Tensor; 3]| match prefix {
            Some(prefix) => attend_after(inputs, prefix),
            None => attend(inputs, None),
        };
        match (&context.packed, &context.mask) {
            (Some(packed), _) => packed.groups().each(inputs, attend_causally),
            (None, Some(mask)) => attend(inputs, Some(mask)),
            (None, None) => attend_causally(inputs),
        }
    }
}
