//! The causal language model: LLaMA (Touvron et al. 2023) and the other families of
//! [`vlm_shapes::LmFamily`].
//!
//! Pre-normalised blocks of grouped-query attention with rotary position embedding and a SwiGLU
//! feed-forward layer. Numbers and names are those of MiniMind-V's `model/model.py` (April 2025),
//! MiniMind's current `model_minimind.py` and Hugging Face's `LlamaForCausalLM`, `Qwen2ForCausalLM`
//! and `Qwen3ForCausalLM`. Unlike these, the forward pass does not compute logits for all
//! positions: [`CausalLm::logits`] is a separate step, for the positions that need them.
//!
//! Dimensions: B batch · T tokens · N tokens of all rows · H hidden size

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};

use crate::attention::{Attention, ForwardContext, Past};
use crate::feed_forward::FeedForward;
use crate::kv_cache::KvCache;
use crate::layers::{RmsNorm, add_residual, linear, select_positions};
use crate::lm_init::inits;
use crate::packed_rows::PackedRows;
use crate::params::Scope;
use crate::rope::RotaryAngles;
use vlm_shapes::LmConfig;
use vlm_shapes::LmNames;

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
        let names = config.names();
        let norm = |name: &str| RmsNorm::new(&scope.sub(name), config.dim, config.norm_eps);
        Self {
            attention: Attention::new(&scope.sub(names.attention), config),
            feed_forward: FeedForward::new(&scope.sub(names.feed_forward), config),
            attention_norm: norm(names.attention_norm),
            ffn_norm: norm(names.ffn_norm),
        }
    }

    /// `[B, T, H]` → `[B, T, H]`, and the experts' auxiliary loss, if there is one. If the context
    /// says which positions are needed, `[1, S, H]`.
    fn forward(
        &self,
        x_bth: &Tensor,
        context: &ForwardContext,
        past: Past,
    ) -> (Tensor, Option<Tensor>) {
        let needed = context.needed.as_ref();
        let select = |x: &Tensor, at: Option<&Tensor>| match at {
            Some(at) => select_positions(x, at),
            None => x.shallow_clone(),
        };
        // The load of the experts is that of all positions, so these need the attention's output.
        let (before, after) = match self.feed_forward.has_aux_loss(context.train) {
            true => (None, needed),
            false => (needed, None),
        };
        let normed = self.attention_norm.forward_for_products(x_bth);
        let normed_prefix;
        let past = match past {
            Past::Prefix(prefix_1ph) => {
                normed_prefix = self.attention_norm.forward_for_products(prefix_1ph);
                Past::Prefix(&normed_prefix)
            }
            other => other,
        };
        let attended = self.attention.forward(&normed, context, before, past);
        let x_bth = add_residual(&select(x_bth, before), attended);
        let (fed, aux_loss) = self.feed_forward.forward(
            &self.feed_forward.normed_input(&self.ffn_norm, &x_bth),
            context.packed.as_ref(),
            after,
            context.train,
        );
        (add_residual(&select(&x_bth, after), fed), aux_loss)
    }
}

/// A block that the backward pass, which may be on another thread, can run again.
#[derive(Debug)]
struct SharedBlock {
    block: Arc<Mutex<Block>>,
    params: Vec<Tensor>,
}

impl SharedBlock {
    fn new(scope: &Scope, config: &LmConfig) -> Self {
        Self { block: Arc::new(Mutex::new(Block::new(scope, config))), params: scope.tensors() }
    }

    /// As [`Block::forward`] without a cache, with activation checkpointing: only the inputs are
    /// kept for the backward pass, which computes the activations again.
    fn forward_checkpointed(
        &self,
        x_bth: &Tensor,
        context: &ForwardContext,
        prefix_1ph: Option<&Tensor>,
    ) -> (Tensor, Option<Tensor>) {
        let (block, context) = (Arc::clone(&self.block), context.shallow_clone());
        let inputs: Vec<&Tensor> = [Some(x_bth), prefix_1ph].into_iter().flatten().collect();
        let params: Vec<&Tensor> = self.params.iter().collect();
        let has_aux_loss = lock(&self.block).feed_forward.has_aux_loss(context.train);
        let outputs = vlm_torch::checkpoint_many(
            &inputs,
            &params,
            1 + usize::from(has_aux_loss),
            move |inputs| {
                let past = inputs.get(1).map_or(Past::None, Past::Prefix);
                let (x_bth, aux_loss) = lock(&block).forward(&inputs[0], &context, past);
                [Some(x_bth), aux_loss].into_iter().flatten().collect()
            },
        );
        // As every tensor operation of this file, it fails only when the machine does, for example
        // when there is no memory left, and not because of its input.
        let mut outputs = outputs.unwrap_or_else(|error| panic!("{error}")).into_iter();
        (outputs.next().expect("the checkpoint has at least one output"), outputs.next())
    }
}

/// Locks a block. A poisoned lock is ignored, because a forward pass does not change the block.
fn lock(block: &Mutex<Block>) -> MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output of a forward pass.
#[derive(Debug)]
pub struct LmOutput {
    /// Hidden states before the last norm, `[B, T, H]`, or `[1, S, H]` of S needed positions.
    pub hidden: Tensor,
    /// The experts' auxiliary loss, summed over the blocks (scalar); only in training with experts.
    pub aux_loss: Option<Tensor>,
}

/// Options of a forward pass of the language model.
#[derive(Debug, Default)]
pub(crate) struct LmOptions<'a> {
    /// Lengths of packed rows: the inputs `[1, N, H]` are the concatenated embeddings of rows with
    /// these lengths, whose sum is N. The rows are independent: the positions of each begin at 0,
    /// and rows do not attend to each other. As there is no padding, the experts' auxiliary loss is
    /// over tokens only.
    pub(crate) packed_lengths: Option<&'a [i64]>,
    /// Embeddings `[1, P, H]` of the tokens that all rows begin with, and that the inputs leave
    /// out. They are computed once for all rows, and without a backward pass where nothing before
    /// them is trained. See [`CausalLm::shares_prefix`].
    pub(crate) prefix_1ph: Option<Tensor>,
    /// Indices `[S]` (i64) into the flattened positions of the inputs, each once, of the positions
    /// whose hidden states are needed. These are the output, `[1, S, H]`, and the last block
    /// computes no others.
    pub(crate) needed: Option<&'a Tensor>,
    /// Whether this is a forward pass of training: with dropout and the auxiliary loss.
    pub(crate) train: bool,
}

/// The language model.
#[derive(Debug)]
pub struct CausalLm {
    config: LmConfig,
    embeddings: Tensor,
    blocks: Vec<SharedBlock>,
    norm: RmsNorm,
    /// The output embeddings; `None` if they are tied to the input embeddings.
    output: Option<Tensor>,
    angles: RotaryAngles,
    activation_checkpointing: bool,
}

impl CausalLm {
    /// Builds the model with random weights; its parameters have their family's names. A tied
    /// output embedding has no parameter of its own. The model has [`LmConfig::max_positions`]
    /// positions.
    pub fn new(scope: &Scope, config: &LmConfig) -> Self {
        let (init, _) = inits(config);
        let names = config.names();
        let table =
            |name: &str| scope.sub(name).param("weight", &[config.vocab_size, config.dim], init);
        Self {
            embeddings: table(names.embeddings),
            blocks: (0..config.n_layers)
                .map(|index| SharedBlock::new(&scope.sub(names.layers).sub(index), config))
                .collect(),
            norm: RmsNorm::new(&scope.sub(names.norm), config.dim, config.norm_eps),
            output: (!config.tie_word_embeddings).then(|| table(names.output)),
            angles: RotaryAngles::new(
                config.head_dim(),
                config.max_positions(),
                config.rope_theta,
                &config.rope_scaling,
                scope.device(),
            ),
            config: config.clone(),
            activation_checkpointing: false,
        }
    }

    /// Turns activation checkpointing on or off. With it, training keeps only the input of each
    /// block and computes the activations again in the backward pass, which takes less memory and
    /// about a third more time.
    pub fn set_activation_checkpointing(&mut self, on: bool) {
        self.activation_checkpointing = on;
    }

    /// The configuration of this model.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// Largest number of positions, of prompt and generated text together.
    pub fn max_positions(&self) -> i64 {
        self.angles.max_positions()
    }

    /// The input embeddings: `input_ids` `[B, T]` (i64) → `[B, T, H]`.
    pub fn embed(&self, input_ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embeddings, input_ids, -1, false, false)
    }

    /// Hidden states `[B, T, H]` before the last norm, from embeddings `[B, T, H]`.
    ///
    /// Rows shorter than T are padded on the right, where a causal model does not attend. With a
    /// cache, the tokens follow those in the cache and are added to it; rows may then be padded on
    /// the left, see [`KvCache::left_padded`].
    pub fn forward(
        &self,
        inputs_bth: &Tensor,
        cache: Option<&mut KvCache>,
        train: bool,
    ) -> LmOutput {
        self.forward_with(inputs_bth, cache, &LmOptions { train, ..LmOptions::default() })
    }

    /// As [`Self::forward`], with `options`. Packed rows and a prefix cannot be used with a cache.
    pub(crate) fn forward_with(
        &self,
        inputs_bth: &Tensor,
        cache: Option<&mut KvCache>,
        options: &LmOptions,
    ) -> LmOutput {
        let (len, device) = (inputs_bth.size()[1], inputs_bth.device());
        let prefix_len = options.prefix_1ph.as_ref().map_or(0, |prefix| prefix.size()[1]);
        let seen = cache.as_deref().map_or(prefix_len, KvCache::len);
        let packed = options.packed_lengths.map(|lengths| PackedRows::new(lengths, device));
        let positions_bt = match &packed {
            Some(packed) => Some(packed.positions() + prefix_len),
            None => cache.as_deref().and_then(|cache| cache.positions(len)),
        };
        let follows = || Tensor::ones([len, seen + len], (Kind::Bool, device)).tril(seen);
        let mask = cache
            .as_deref()
            .and_then(|cache| cache.mask(len).or_else(|| (seen > 0 && len > 1).then(follows)));
        let context = ForwardContext {
            rotations: match &positions_bt {
                Some(positions_bt) => self.angles.at_each(positions_bt),
                None => self.angles.at(seen, len),
            },
            prefix_rotations: self.angles.at(0, prefix_len),
            mask,
            packed,
            needed: None,
            train: options.train,
        };
        self.run(inputs_bth, &context, options, cache)
    }

    fn run(
        &self,
        inputs_bth: &Tensor,
        context: &ForwardContext,
        options: &LmOptions,
        mut cache: Option<&mut KvCache>,
    ) -> LmOutput {
        let train = context.train;
        let needed = options.needed.map(Tensor::shallow_clone);
        let of_last = ForwardContext { needed, ..context.shallow_clone() };
        let of_prefix = ForwardContext {
            rotations: context.prefix_rotations.shallow_clone(),
            packed: None,
            ..context.shallow_clone()
        };
        let mut prefix_1ph = options.prefix_1ph.as_ref().map(Tensor::shallow_clone);
        let mut x_bth = inputs_bth.dropout(self.config.dropout, train);
        let mut aux_losses = Vec::new();
        for (index, shared) in self.blocks.iter().enumerate() {
            let is_last = index + 1 == self.blocks.len();
            let context = if is_last { &of_last } else { context };
            let past = match (cache.as_deref_mut(), &prefix_1ph) {
                (Some(cache), _) => Past::Cache(cache, index),
                (None, Some(prefix_1ph)) => Past::Prefix(prefix_1ph),
                (None, None) => Past::None,
            };
            let (output_bth, aux_loss) = if train && self.activation_checkpointing {
                shared.forward_checkpointed(&x_bth, context, prefix_1ph.as_ref())
            } else {
                lock(&shared.block).forward(&x_bth, context, past)
            };
            x_bth = output_bth;
            aux_losses.extend(aux_loss);
            if !is_last {
                let after = |p: Tensor| lock(&shared.block).forward(&p, &of_prefix, Past::None).0;
                prefix_1ph = prefix_1ph.map(after);
            }
        }
        let aux_loss = aux_losses.into_iter().reduce(|sum, loss| sum + loss);
        LmOutput { hidden: x_bth, aux_loss }
    }

    /// Whether the parameter `name` of a block is a factor of a product or added to one. Norms are
    /// not, and a router computes in float32.
    pub(crate) fn is_product_weight(&self, name: &str) -> bool {
        let names = self.config.names();
        let in_block = name.strip_prefix(names.layers).and_then(|name| name.strip_prefix('.'));
        let Some((_, part)) = in_block.and_then(|name| name.split_once('.')) else { return false };
        let router = format!("{}.{}.weight", names.feed_forward, names.router);
        let is_router = self.config.use_moe && part == router;
        !is_router && !part.contains("norm")
    }

    /// Whether the tokens that all rows begin with can be given once, see [`LmOptions`]. Dropout
    /// would be the same in all rows, and the auxiliary loss of experts is that of all tokens.
    pub(crate) fn shares_prefix(&self, train: bool) -> bool {
        let LmConfig { dropout, use_moe, .. } = self.config;
        !train || (dropout == 0.0 && self.config.attention_dropout() == 0.0 && !use_moe)
    }

    /// The logits `[…, vocab_size]` of hidden states `[…, H]` from [`Self::forward`].
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let output = self.output.as_ref().unwrap_or(&self.embeddings);
        linear(&self.norm.forward_for_products(hidden), output, None)
    }
}

/// Adds to a model's named parameters the name of the output embeddings, if they are tied: the
/// families' weights files have the tied tensor under both names.
pub fn with_tied_output(
    mut named: Vec<(String, Tensor)>,
    config: &LmConfig,
) -> Vec<(String, Tensor)> {
    let names = config.names();
    let (input, output) = (LmNames::weight(names.embeddings), LmNames::weight(names.output));
    if config.tie_word_embeddings {
        let tied = named.iter().find(|(name, _)| *name == input);
        let entry = tied.map(|(_, tensor)| (output, tensor.shallow_clone()));
        named.extend(entry);
    }
    named
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
        // A prompt, further tokens together, then single tokens.
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
