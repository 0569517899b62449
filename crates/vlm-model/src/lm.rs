//! The causal language model: LLaMA (Touvron et al. 2023) in the forms of [`vlm_shapes::LmFamily`].
//!
//! Pre-normalised blocks of grouped-query attention with rotary positions and a SwiGLU
//! feed-forward layer. Follows MiniMind-V's `model/model.py` (April 2025), MiniMind's present
//! `model_minimind.py` and Hugging Face's `LlamaForCausalLM`, `Qwen2ForCausalLM` and
//! `Qwen3ForCausalLM` in every number and name; it does not follow them in making logits for all positions: [`CausalLm::logits`] is a
//! separate step, for the positions that matter.
//!
//! Dimensions: B batch · T tokens · N tokens of all rows · H hidden size

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};

use crate::attention::{Attention, CacheSlot, Pass};
use crate::feed_forward::FeedForward;
use crate::kv_cache::KvCache;
use crate::layers::RmsNorm;
use crate::packed_rows::PackedRows;
use crate::params::{Init, Scope};
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

    /// `[B, T, H]` → `[B, T, H]`, and the experts' auxiliary loss where there is one.
    fn forward(&self, x_bth: &Tensor, pass: &Pass, cache: CacheSlot) -> (Tensor, Option<Tensor>) {
        let attended = self.attention.forward(&self.attention_norm.forward(x_bth), pass, cache);
        let x_bth = x_bth + attended;
        let (fed, aux_loss) = self.feed_forward.forward(
            &self.ffn_norm.forward(&x_bth),
            pass.packed.as_ref(),
            pass.train,
        );
        (x_bth + fed, aux_loss)
    }
}

/// A block that a backward pass, on whichever thread, can run again.
#[derive(Debug)]
struct SharedBlock {
    block: Arc<Mutex<Block>>,
    params: Vec<Tensor>,
}

impl SharedBlock {
    fn new(scope: &Scope, config: &LmConfig) -> Self {
        Self { block: Arc::new(Mutex::new(Block::new(scope, config))), params: scope.tensors() }
    }

    fn forward(&self, x_bth: &Tensor, pass: &Pass, cache: CacheSlot) -> (Tensor, Option<Tensor>) {
        lock(&self.block).forward(x_bth, pass, cache)
    }

    /// As [`Self::forward`]; of what it computes only `x_bth` is kept for the backward pass, which
    /// computes the rest again.
    fn forward_checkpointed(&self, x_bth: &Tensor, pass: &Pass) -> (Tensor, Option<Tensor>) {
        let (block, pass) = (Arc::clone(&self.block), pass.share());
        let params: Vec<&Tensor> = self.params.iter().collect();
        let has_aux_loss = lock(&self.block).feed_forward.has_aux_loss(pass.train);
        let outputs = vlm_torch::checkpoint_many(
            &[x_bth],
            &params,
            1 + usize::from(has_aux_loss),
            move |inputs| {
                let (x_bth, aux_loss) = lock(&block).forward(&inputs[0], &pass, None);
                [Some(x_bth), aux_loss].into_iter().flatten().collect()
            },
        );
        // As every tensor operation of this file: what fails here is the machine, not the input.
        let mut outputs = outputs.unwrap_or_else(|error| panic!("{error}")).into_iter();
        (outputs.next().expect("a checkpoint returns what it was asked for"), outputs.next())
    }
}

/// A block that panicked was not changed by it.
fn lock(block: &Mutex<Block>) -> MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
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
    embeddings: Tensor,
    blocks: Vec<SharedBlock>,
    norm: RmsNorm,
    /// `None`: the input embeddings serve as output embeddings too.
    output: Option<Tensor>,
    angles: RotaryAngles,
    activation_checkpointing: bool,
}

impl CausalLm {
    /// Builds the model with random weights under its family's names. A tied output embedding is
    /// the same tensor as the input embedding and has no entry of its own.
    ///
    /// There are rotary angles for [`LmConfig::max_positions`] positions.
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

    /// Whether training keeps only each block's input, and computes the rest again in the backward
    /// pass: less memory for about a third more time.
    pub fn set_activation_checkpointing(&mut self, on: bool) {
        self.activation_checkpointing = on;
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
        Tensor::embedding(&self.embeddings, input_ids, -1, false, false)
    }

    /// Hidden states `[B, T, H]` before the last norm, from embeddings `[B, T, H]`.
    ///
    /// Rows shorter than T are padded on the right: a causal model never looks there. With a cache
    /// the tokens follow those the cache has seen, and are added to it; the cache says whether rows
    /// are padded on the left.
    pub fn forward(
        &self,
        inputs_bth: &Tensor,
        cache: Option<&mut KvCache>,
        train: bool,
    ) -> LmOutput {
        let len = inputs_bth.size()[1];
        let seen = cache.as_deref().map_or(0, KvCache::len);
        let positions_bt = cache.as_deref().and_then(|cache| cache.positions(len));
        let follows =
            || Tensor::ones([len, seen + len], (Kind::Bool, inputs_bth.device())).tril(seen);
        let pass = Pass {
            rotations: match &positions_bt {
                Some(positions_bt) => self.angles.at_each(positions_bt),
                None => self.angles.at(seen, len),
            },
            mask: cache
                .as_deref()
                .and_then(|cache| cache.mask(len))
                .or_else(|| (seen > 0 && len > 1).then(follows)),
            packed: None,
            train,
        };
        self.run(inputs_bth, &pass, cache)
    }

    /// As [`Self::forward`] for rows that lie end to end: embeddings `[1, N, H]` of rows with these
    /// `lengths`, which add up to N. Each row is as if it were alone: its positions begin at 0, and
    /// it sees no other. The experts' auxiliary loss is over tokens alone, there being no padding.
    pub fn forward_packed(&self, inputs_1nh: &Tensor, lengths: &[i64], train: bool) -> LmOutput {
        let packed = PackedRows::new(lengths, inputs_1nh.device());
        let rotations = self.angles.at_each(&packed.positions());
        let pass = Pass { rotations, mask: None, packed: Some(packed), train };
        self.run(inputs_1nh, &pass, None)
    }

    fn run(&self, inputs_bth: &Tensor, pass: &Pass, mut cache: Option<&mut KvCache>) -> LmOutput {
        let train = pass.train;
        let mut x_bth = inputs_bth.dropout(self.config.dropout, train);
        let mut aux_losses = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let (output_bth, aux_loss) = if train && self.activation_checkpointing {
                block.forward_checkpointed(&x_bth, pass)
            } else {
                block.forward(&x_bth, pass, cache.as_deref_mut().map(|cache| (cache, index)))
            };
            x_bth = output_bth;
            aux_losses.extend(aux_loss);
        }
        let aux_loss = aux_losses.into_iter().reduce(|sum, loss| sum + loss);
        LmOutput { hidden: x_bth, aux_loss }
    }

    /// Logits `[…, vocab_size]` of hidden states `[…, H]` as [`Self::forward`] returns them.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let output = self.output.as_ref().unwrap_or(&self.embeddings);
        self.norm.forward(hidden).linear(output, None::<Tensor>)
    }
}

/// A model's named parameters with the output embedding's own name added, as the families' files
/// have it: a tied tensor is there under both names.
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
