//! The causal language model: MiniMind's form of LLaMA.
//!
//! Pre-normalised blocks of grouped-query attention with rotary positions and a SwiGLU
//! feed-forward layer; input and output embeddings are one tensor. Follows MiniMind-V's
//! `model/model.py` (April 2025) in every number and name; it does not follow it in making logits
//! for all positions: [`CausalLm::logits`] is a separate step, for the positions that matter.
//!
//! Dimensions: B batch · T tokens · H hidden size · N heads · K key/value heads · D head width

use tch::{Kind, Tensor};

use crate::config::LmConfig;
use crate::feed_forward::FeedForward;
use crate::layers::{Linear, RmsNorm};
use crate::params::{Init, Scope};
use crate::rope::{RotaryAngles, rotate};

/// Keys and values of the tokens seen so far, one pair a block.
#[derive(Debug, Default)]
pub struct KvCache {
    /// `(keys, values)` of each block, `[B, K, T, D]`.
    blocks: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// Number of tokens held.
    pub fn len(&self) -> i64 {
        self.blocks.first().map_or(0, |(keys, _)| keys.size()[2])
    }

    /// Whether no token has been seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps only the given rows of the batch, in the given order.
    pub fn select_rows(&mut self, rows: &Tensor) {
        for (keys, values) in &mut self.blocks {
            *keys = keys.index_select(0, rows);
            *values = values.index_select(0, rows);
        }
    }

    /// Adds the new tokens' keys and values of block `index` and returns all of them.
    fn extend(&mut self, index: usize, keys: Tensor, values: Tensor) -> (Tensor, Tensor) {
        if let Some((old_keys, old_values)) = self.blocks.get_mut(index) {
            *old_keys = Tensor::cat(&[&*old_keys, &keys], 2);
            *old_values = Tensor::cat(&[&*old_values, &values], 2);
            (old_keys.shallow_clone(), old_values.shallow_clone())
        } else {
            self.blocks.push((keys.shallow_clone(), values.shallow_clone()));
            (keys, values)
        }
    }
}

/// What every block of one forward pass shares.
struct Pass<'a> {
    rotations: Tensor,
    /// `None`: plainly causal. Else `[T, seen + T]`, true where a token may look.
    mask: Option<Tensor>,
    cache: Option<&'a mut KvCache>,
    /// The experts' auxiliary losses of the blocks so far.
    aux_losses: Vec<Tensor>,
    train: bool,
}

/// Grouped-query attention (Ainslie et al. 2023) through libtorch's fused kernel.
#[derive(Debug)]
struct Attention {
    wq: Linear,
    wk: Linear,
    wv: Linear,
    wo: Linear,
    n_heads: i64,
    n_kv_heads: i64,
    head_dim: i64,
    dropout: f64,
}

impl Attention {
    fn new(scope: &Scope, config: &LmConfig) -> Self {
        let (dim, head_dim) = (config.dim, config.head_dim());
        let (init, residual) = inits(config);
        let kv_dim = config.n_kv_heads * head_dim;
        Self {
            wq: Linear::without_bias(&scope.sub("wq"), dim, dim, init),
            wk: Linear::without_bias(&scope.sub("wk"), dim, kv_dim, init),
            wv: Linear::without_bias(&scope.sub("wv"), dim, kv_dim, init),
            wo: Linear::without_bias(&scope.sub("wo"), dim, dim, residual),
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim,
            dropout: config.dropout,
        }
    }

    fn forward(&self, x_bth: &Tensor, block: usize, pass: &mut Pass) -> Tensor {
        let (batch, len, dim) = x_bth.size3().expect("[B, T, H] by construction");
        let split = |x: Tensor, heads| x.view([batch, len, heads, self.head_dim]);
        let q = rotate(&split(self.wq.forward(x_bth), self.n_heads), &pass.rotations);
        let k = rotate(&split(self.wk.forward(x_bth), self.n_kv_heads), &pass.rotations);
        let v = split(self.wv.forward(x_bth), self.n_kv_heads);

        let q_bntd = q.transpose(1, 2);
        let (mut k_bktd, mut v_bktd) = (k.transpose(1, 2), v.transpose(1, 2));
        if let Some(cache) = pass.cache.as_deref_mut() {
            (k_bktd, v_bktd) = cache.extend(block, k_bktd, v_bktd);
        }
        let is_causal = pass.mask.is_none() && len > 1;
        let dropout = if pass.train { self.dropout } else { 0.0 };
        let mixed_bntd = Tensor::scaled_dot_product_attention(
            &q_bntd,
            &k_bktd,
            &v_bktd,
            pass.mask.as_ref(),
            dropout,
            is_causal,
            None,
            self.n_heads != self.n_kv_heads,
        );
        let out = self.wo.forward(&mixed_bntd.transpose(1, 2).reshape([batch, len, dim]));
        out.dropout(self.dropout, pass.train)
    }
}

/// One transformer block.
#[derive(Debug)]
struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    ffn_norm: RmsNorm,
    feed_forward: FeedForward,
}

impl Block {
    fn new(scope: &Scope, config: &LmConfig) -> Self {
        Self {
            attention: Attention::new(&scope.sub("attention"), config),
            feed_forward: FeedForward::new(&scope.sub("feed_forward"), config),
            attention_norm: RmsNorm::new(&scope.sub("attention_norm"), config.dim, config.norm_eps),
            ffn_norm: RmsNorm::new(&scope.sub("ffn_norm"), config.dim, config.norm_eps),
        }
    }

    fn forward(&self, x_bth: &Tensor, index: usize, pass: &mut Pass) -> Tensor {
        let attended = self.attention.forward(&self.attention_norm.forward(x_bth), index, pass);
        let x_bth = x_bth + attended;
        let (fed, aux_loss) = self.feed_forward.forward(&self.ffn_norm.forward(&x_bth), pass.train);
        pass.aux_losses.extend(aux_loss);
        x_bth + fed
    }
}

/// What a forward pass gives.
#[derive(Debug)]
pub struct LmOutput {
    /// `[B, T, H]`, before the last norm.
    pub hidden: Tensor,
    /// The experts' auxiliary loss summed over the blocks, scalar; in training with experts only.
    pub aux_loss: Option<Tensor>,
}

/// The language model.
#[derive(Debug)]
pub struct CausalLm {
    config: LmConfig,
    tok_embeddings: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    angles: RotaryAngles,
}

impl CausalLm {
    /// Builds the model with random weights under the reference's names. The tied output
    /// embedding is the same tensor as `tok_embeddings.weight` and has no entry of its own.
    ///
    /// There are rotary angles for `config.max_seq_len` positions and twice as many again, so that
    /// an answer can follow a prompt of full length.
    pub fn new(scope: &Scope, config: &LmConfig) -> Self {
        let (init, _) = inits(config);
        let embeddings = scope.sub("tok_embeddings");
        let max_positions = (3 * config.max_seq_len).max(2048);
        Self {
            tok_embeddings: embeddings.param("weight", &[config.vocab_size, config.dim], init),
            blocks: (0..config.n_layers)
                .map(|index| Block::new(&scope.sub("layers").sub(index), config))
                .collect(),
            norm: RmsNorm::new(&scope.sub("norm"), config.dim, config.norm_eps),
            angles: RotaryAngles::new(
                config.head_dim(),
                max_positions,
                config.rope_theta,
                scope.device(),
            ),
            config: config.clone(),
        }
    }

    /// The shape this model was built with.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// Most positions that prompt and answer may take together.
    pub fn max_positions(&self) -> i64 {
        self.angles.max_positions()
    }

    /// `input_ids` `[B, T]` (i64) → `[B, T, H]`.
    pub fn embed(&self, input_ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.tok_embeddings, input_ids, -1, false, false)
    }

    /// Hidden states `[B, T, H]` before the last norm, from embeddings `[B, T, H]`.
    ///
    /// Rows shorter than T are padded on the right: a causal model never looks there. With a cache
    /// the tokens follow those the cache has seen, and are added to it.
    pub fn forward(
        &self,
        inputs_bth: &Tensor,
        cache: Option<&mut KvCache>,
        train: bool,
    ) -> LmOutput {
        let len = inputs_bth.size()[1];
        let seen = cache.as_deref().map_or(0, KvCache::len);
        let mut pass = Pass {
            rotations: self.angles.at(seen, len),
            mask: (seen > 0 && len > 1).then(|| {
                Tensor::ones([len, seen + len], (Kind::Bool, inputs_bth.device())).tril(seen)
            }),
            cache,
            aux_losses: Vec::new(),
            train,
        };
        let mut x_bth = inputs_bth.dropout(self.config.dropout, train);
        for (index, block) in self.blocks.iter().enumerate() {
            x_bth = block.forward(&x_bth, index, &mut pass);
        }
        let aux_loss = pass.aux_losses.into_iter().reduce(|sum, loss| sum + loss);
        LmOutput { hidden: x_bth, aux_loss }
    }

    /// Logits `[…, vocab_size]` of hidden states `[…, H]` as [`Self::forward`] returns them.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.norm.forward(hidden).linear(&self.tok_embeddings, None::<Tensor>)
    }
}

/// A model's named parameters with the output embedding's own name added, as the reference's files
/// have it: the tied tensor is there under both names.
pub fn with_tied_output(mut named: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    let tied = named.iter().find(|(name, _)| name == "tok_embeddings.weight");
    let output = tied.map(|(_, tensor)| ("output.weight".to_owned(), tensor.shallow_clone()));
    named.extend(output);
    named
}

/// Starting values: a small normal, and a smaller one where a block writes into the residual
/// stream (Radford et al. 2019, section 2.3).
pub(crate) fn inits(config: &LmConfig) -> (Init, Init) {
    const STD: f64 = 0.02;
    (Init::Normal(STD), Init::Normal(STD / (2.0 * config.n_layers as f64).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamStore;
    use tch::Device;

    fn small() -> (ParamStore, CausalLm) {
        tch::manual_seed(7);
        let store = ParamStore::new(Device::Cpu);
        let config = LmConfig {
            dim: 32,
            n_layers: 2,
            n_heads: 4,
            vocab_size: 50,
            max_seq_len: 32,
            ..LmConfig::default()
        };
        let lm = CausalLm::new(&store.root(), &config);
        (store, lm)
    }

    #[test]
    fn cached_steps_equal_one_pass() {
        let (_store, lm) = small();
        let ids = Tensor::randint(50, [2, 9], (Kind::Int64, Device::Cpu));
        let whole = lm.forward(&lm.embed(&ids), None, false).hidden;
        let mut cache = KvCache::default();
        // A prompt, a longer piece, then one token at a time: the three shapes of use.
        for (start, len) in [(0, 3), (3, 4), (7, 1), (8, 1)] {
            let piece =
                lm.forward(&lm.embed(&ids.narrow(1, start, len)), Some(&mut cache), false).hidden;
            let difference = (piece - whole.narrow(1, start, len)).abs().max();
            assert!(f64::try_from(difference).unwrap() < 1e-5);
        }
        assert_eq!(cache.len(), 9);
    }

    #[test]
    fn padding_on_the_right_changes_nothing() {
        let (_store, lm) = small();
        let ids = Tensor::randint(50, [1, 5], (Kind::Int64, Device::Cpu));
        let padded = Tensor::cat(&[&ids, &Tensor::zeros([1, 4], (Kind::Int64, Device::Cpu))], 1);
        let short = lm.forward(&lm.embed(&ids), None, false).hidden;
        let long = lm.forward(&lm.embed(&padded), None, false).hidden.narrow(1, 0, 5);
        assert!(f64::try_from((short - long).abs().max()).unwrap() < 1e-5);
    }
}
