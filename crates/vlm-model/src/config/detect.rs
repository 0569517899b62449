//! What a weight file's names and shapes say about the language model in it.

use std::fmt;

use super::{LmConfig, LmFamily, ProjectorKind};
use crate::ModelError;
use crate::names::LmNames;
use crate::projector;
use crate::weights::{Weights, WeightsError};

/// A number of the configuration that is not the weights'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// The field of [`LmConfig`].
    pub field: &'static str,
    /// The weights' number.
    pub found: i64,
    /// The configuration's.
    pub expected: i64,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, found, expected } = self;
        write!(f, "{field} is {found} in the weights and {expected} in the configuration")
    }
}

/// Tokens of MiniMind's tokenizer, which all of its models of 2025 and 2026 have.
const MINIMIND_VOCABULARY: i64 = 6400;

impl LmFamily {
    /// The family that a file's names belong to, and where the names are the same its vocabulary;
    /// `None` for another model's.
    pub fn of_weights(weights: &Weights) -> Option<Self> {
        let has = |name: &str| weights.find(name).is_some();
        let has_embeddings = |family| has(&LmNames::weight(LmNames::of(family).embeddings));
        if has_embeddings(Self::MiniMind) {
            return Some(Self::MiniMind);
        }
        let names = LmNames::of(Self::MiniMind3);
        let is_normed = has(&names.block_weight(0, &[names.attention, names.query_norm]));
        let embeddings = LmNames::weight(names.embeddings);
        let is_minimind = weights.shape(&embeddings)?.first() == Some(&MINIMIND_VOCABULARY)
            || num_shared_experts(weights, names) > 0;
        Some(match (is_normed, is_minimind) {
            (true, _) => Self::MiniMind3,
            (false, true) => Self::MiniMind2,
            (false, false) => Self::Llama,
        })
    }
}

impl LmConfig {
    /// The usual shape of the family that a file's names belong to, for weights without a
    /// `config.json`: with what the names say of experts and tied embeddings.
    ///
    /// # Errors
    /// Another model's weights; a file that cannot be read.
    pub fn usual_for(weights: &Weights) -> Result<Self, WeightsError> {
        let Some(family) = LmFamily::of_weights(weights) else {
            return Err(weights.refused(
                "neither tok_embeddings.weight nor model.embed_tokens.weight is there: these are \
                 no weights of a language model of a known form",
            ));
        };
        let mut config = family.usual_config();
        let names = config.names();
        let num_experts = num_experts(weights, names);
        if num_experts > 0 {
            config.use_moe = true;
            config.moe.n_routed_experts = num_experts;
            config.adopt_shared_experts(weights);
        }
        let has_bias = |path: &[&str]| weights.find(&names.block_bias(0, path)).is_some();
        config.qkv_bias = has_bias(&[names.attention, names.query]);
        config.attention_output_bias = has_bias(&[names.attention, names.attention_output]);
        config.mlp_bias = has_bias(&[names.feed_forward, names.gate]);
        if family != LmFamily::MiniMind {
            config.tie_word_embeddings = is_tied(weights, names)?;
        }
        Ok(config)
    }

    /// MiniMind2's shared experts are as many as the file has.
    fn adopt_shared_experts(&mut self, weights: &Weights) {
        if self.family == LmFamily::MiniMind2 {
            self.moe.n_shared_experts = Some(num_shared_experts(weights, self.names()));
        }
    }

    /// Takes over what the weights alone decide (vocabulary, widths, whether queries and keys are
    /// normalised) and compares the rest.
    ///
    /// # Errors
    /// The first number that disagrees.
    pub fn adopt(&mut self, weights: &Weights) -> Result<(), Disagreement> {
        let names = self.names();
        let length = |name: String, dimension: usize| {
            weights.shape(&name).and_then(|shape| shape.get(dimension).copied())
        };
        let in_first = |path: &[&str], dimension| length(names.block_weight(0, path), dimension);
        let check = |field, found, expected| match found {
            Some(found) if found != expected => Err(Disagreement { field, found, expected }),
            _ => Ok(()),
        };
        let embeddings = LmNames::weight(names.embeddings);
        check("dim", length(embeddings.clone(), 1), self.dim)?;
        let num_layers = weights.names().filter_map(|name| names.block_of(name)).max();
        check("n_layers", Some(num_layers.map_or(0, |last| last + 1)), self.n_layers)?;
        if self.use_moe {
            let found = num_experts(weights, names);
            check("n_routed_experts", Some(found), self.moe.n_routed_experts)?;
            if self.family == LmFamily::MiniMind2 {
                let found = num_shared_experts(weights, names);
                check("n_shared_experts", Some(found), self.moe.n_shared_experts.unwrap_or(0))?;
            }
        }
        self.vocab_size = length(embeddings, 0).unwrap_or(self.vocab_size);

        let query_norm = in_first(&[names.attention, names.query_norm], 0);
        self.qk_norm = query_norm.is_some();
        if self.head_dim.is_none() && query_norm.is_some_and(|width| width != self.head_dim()) {
            self.head_dim = query_norm;
        }
        for (field, part, heads) in
            [("n_heads", names.query, self.n_heads), ("n_kv_heads", names.key, self.n_kv_heads)]
        {
            let width = in_first(&[names.attention, part], 0);
            if width != Some(heads * self.head_dim()) {
                check(field, width.map(|width| width / self.head_dim()), heads)?;
            }
        }
        let dense = in_first(&[names.feed_forward, names.gate], 0);
        let expert = in_first(&[names.feed_forward, names.experts, "0", names.gate], 0);
        self.hidden_dim = dense.or(expert).or(self.hidden_dim);
        Ok(())
    }

    /// Checks that a file that has the output embeddings too holds in both what the model ties.
    ///
    /// # Errors
    /// Two tensors where the model has one; a file that cannot be read.
    pub fn check_tied(&self, weights: &Weights) -> Result<(), ModelError> {
        let read_error = |e: WeightsError| ModelError::Config(e.to_string());
        let names = self.names();
        if !self.tie_word_embeddings || is_tied(weights, names).map_err(read_error)? {
            return Ok(());
        }
        let (output, input) = (LmNames::weight(names.output), LmNames::weight(names.embeddings));
        let advice = match self.family {
            LmFamily::MiniMind => "",
            _ => "; set tie_word_embeddings to false in config.json if they are two",
        };
        Err(ModelError::Config(format!(
            "{}: {output} is not {input}; this model ties the two, and loading it would change \
             its answers{advice}",
            weights.path().display()
        )))
    }
}

impl ProjectorKind {
    /// The projector that a file holds, if it holds one.
    pub fn of_weights(weights: &Weights) -> Option<Self> {
        let kinds = [Self::Linear, Self::Mlp, Self::MergedMlp, Self::PixelShuffle];
        kinds.into_iter().find(|&kind| weights.find(projector::last_weight(kind)).is_some())
    }
}

/// Routed experts of the first block.
fn num_experts(weights: &Weights, names: &LmNames) -> i64 {
    let is_there = |index: &i64| {
        let expert = index.to_string();
        let path = [names.feed_forward, names.experts, &expert, names.gate];
        weights.find(&names.block_weight(0, &path)).is_some()
    };
    (0..).take_while(is_there).count() as i64
}

/// Numbered shared experts of the first block.
fn num_shared_experts(weights: &Weights, names: &LmNames) -> i64 {
    let is_there = |index: &i64| {
        let expert = index.to_string();
        let path = [names.feed_forward, names.shared_experts, &expert, names.gate];
        weights.find(&names.block_weight(0, &path)).is_some()
    };
    (0..).take_while(is_there).count() as i64
}

/// Whether input and output embeddings are one, or equal; a file without output embeddings ties
/// them.
fn is_tied(weights: &Weights, names: &LmNames) -> Result<bool, WeightsError> {
    let (output, input) = (LmNames::weight(names.output), LmNames::weight(names.embeddings));
    let Some(info) = weights.find(&output) else { return Ok(true) };
    if info.shared_with.as_deref() == Some(&input) {
        return Ok(true);
    }
    if weights.shape(&output) != weights.shape(&input) {
        return Ok(false);
    }
    Ok(weights.get(&output)? == weights.get(&input)?)
}
