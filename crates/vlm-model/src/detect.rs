//! Recognises a language model and a projector by the names and shapes in a weights file.

use std::fmt;

use vlm_shapes::{
    LmConfig, LmFamily, LmNames, ProjectorConfig, ProjectorKind, ShapeError, VisionConfig,
};

use crate::ModelError;
use crate::weights::{Weights, WeightsError};

/// A number that differs between the weights and the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// The field of [`LmConfig`].
    pub field: &'static str,
    /// The number in the weights.
    pub found: i64,
    /// The number in the configuration.
    pub expected: i64,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, found, expected } = self;
        write!(f, "{field} is {found} in the weights and {expected} in the configuration")
    }
}

/// Vocabulary size of MiniMind's tokenizer, which all MiniMind models of 2025 and 2026 use.
const MINIMIND_VOCABULARY: i64 = 6400;

/// The family that the tensor names belong to. Families that share their names are distinguished by
/// the vocabulary size. `None` if the weights belong to another model.
pub fn family_of(weights: &Weights) -> Option<LmFamily> {
    let has = |name: &str| weights.find(name).is_some();
    let has_embeddings = |family| has(&LmNames::weight(LmNames::of(family).embeddings));
    if has_embeddings(LmFamily::MiniMind) {
        return Some(LmFamily::MiniMind);
    }
    let names = LmNames::of(LmFamily::MiniMind3);
    let is_normed = has(&names.block_weight(0, &[names.attention, names.query_norm]));
    let embeddings = LmNames::weight(names.embeddings);
    let is_minimind = weights.shape(&embeddings)?.first() == Some(&MINIMIND_VOCABULARY)
        || num_shared_experts(weights, names) > 0;
    Some(match (is_normed, is_minimind) {
        (true, _) => LmFamily::MiniMind3,
        (false, true) => LmFamily::MiniMind2,
        (false, false) => LmFamily::Llama,
    })
}

/// The kind of projector in a file, if there is one.
pub fn projector_of(weights: &Weights) -> Option<ProjectorKind> {
    let is_there = |kind: &ProjectorKind| weights.find(kind.characteristic_weight()).is_some();
    ProjectorKind::ALL.into_iter().find(is_there)
}

/// The configuration of a projector of `kind` for the patch features of `vision`. The number of
/// patches that a pixel-shuffle projector merges is that of `weights`, if they have such a
/// projector, or else its default.
///
/// # Errors
/// The number of patches cannot be merged by a projector of this kind.
pub fn projector_config(
    kind: ProjectorKind,
    weights: Option<&Weights>,
    vision: &VisionConfig,
) -> Result<ProjectorConfig, ShapeError> {
    let merged = weights
        .filter(|_| kind == ProjectorKind::PixelShuffle)
        .and_then(|weights| weights.shape(kind.characteristic_weight())?.get(1).copied());
    // The width of a token is that of a patch times the number of patches in a square.
    let square = merged.map(|merged| (merged as f64 / vision.hidden_size as f64).sqrt() as i64);
    match square.filter(|square| square * square * vision.hidden_size == merged.unwrap_or(0)) {
        Some(square) => ProjectorConfig::pixel_shuffle(square, vision),
        None => ProjectorConfig::new(kind, vision),
    }
}

/// A configuration for weights without a `config.json`: the default of the family that the names
/// belong to, with the experts, biases and tied embeddings that follow from the names.
///
/// # Errors
/// The weights belong to an unsupported model, or the file cannot be read.
pub fn default_config_for(weights: &Weights) -> Result<LmConfig, WeightsError> {
    let Some(family) = family_of(weights) else {
        return Err(weights.refused(
            "neither tok_embeddings.weight nor model.embed_tokens.weight is there: these are not \
             the weights of a supported language model",
        ));
    };
    let mut config = family.default_config();
    let names = config.names();
    let num_experts = num_experts(weights, names);
    if num_experts > 0 {
        config.use_moe = true;
        config.moe.n_routed_experts = num_experts;
        if family == LmFamily::MiniMind2 {
            config.moe.n_shared_experts = Some(num_shared_experts(weights, names));
        }
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

/// Sets the fields of `config` that follow from the weights (vocabulary size, widths, whether
/// queries and keys are normalised), and compares the other numbers.
///
/// # Errors
/// A number differs between the weights and the configuration; the first one is returned.
pub fn adopt_shapes(config: &mut LmConfig, weights: &Weights) -> Result<(), Disagreement> {
    let names = config.names();
    let length = |name: String, dimension: usize| {
        weights.shape(&name).and_then(|shape| shape.get(dimension).copied())
    };
    let in_first = |path: &[&str], dimension| length(names.block_weight(0, path), dimension);
    let check = |field, found, expected| match found {
        Some(found) if found != expected => Err(Disagreement { field, found, expected }),
        _ => Ok(()),
    };
    let embeddings = LmNames::weight(names.embeddings);
    check("dim", length(embeddings.clone(), 1), config.dim)?;
    let num_layers = weights.names().filter_map(|name| names.block_of(name)).max();
    check("n_layers", Some(num_layers.map_or(0, |last| last + 1)), config.n_layers)?;
    if config.use_moe {
        let found = num_experts(weights, names);
        check("n_routed_experts", Some(found), config.moe.n_routed_experts)?;
        if config.family == LmFamily::MiniMind2 {
            let found = num_shared_experts(weights, names);
            check("n_shared_experts", Some(found), config.moe.n_shared_experts.unwrap_or(0))?;
        }
    }
    config.vocab_size = length(embeddings, 0).unwrap_or(config.vocab_size);

    let query_norm = in_first(&[names.attention, names.query_norm], 0);
    config.qk_norm = query_norm.is_some();
    if config.head_dim.is_none() && query_norm.is_some_and(|width| width != config.head_dim()) {
        config.head_dim = query_norm;
    }
    for (field, part, heads) in
        [("n_heads", names.query, config.n_heads), ("n_kv_heads", names.key, config.n_kv_heads)]
    {
        let width = in_first(&[names.attention, part], 0);
        if width != Some(heads * config.head_dim()) {
            check(field, width.map(|width| width / config.head_dim()), heads)?;
        }
    }
    let dense = in_first(&[names.feed_forward, names.gate], 0);
    let expert = in_first(&[names.feed_forward, names.experts, "0", names.gate], 0);
    config.hidden_dim = dense.or(expert).or(config.hidden_dim);
    Ok(())
}

/// Checks that a file's output embeddings, if it has any, equal its input embeddings, if the model
/// ties the two.
///
/// # Errors
/// The two differ, or the file cannot be read.
pub fn check_tied(config: &LmConfig, weights: &Weights) -> Result<(), ModelError> {
    let read_error = |e: WeightsError| ModelError::Config(e.to_string());
    let names = config.names();
    if !config.tie_word_embeddings || is_tied(weights, names).map_err(read_error)? {
        return Ok(());
    }
    let (output, input) = (LmNames::weight(names.output), LmNames::weight(names.embeddings));
    let advice = match config.family {
        LmFamily::MiniMind => "",
        _ => "; if they should differ, set tie_word_embeddings to false in config.json",
    };
    Err(ModelError::Config(format!(
        "{}: {output} differs from {input}, but this model ties the two{advice}",
        weights.path().display()
    )))
}

/// Number of routed experts of the first block.
fn num_experts(weights: &Weights, names: &LmNames) -> i64 {
    let is_there = |index: &i64| {
        let expert = index.to_string();
        let path = [names.feed_forward, names.experts, &expert, names.gate];
        weights.find(&names.block_weight(0, &path)).is_some()
    };
    (0..).take_while(is_there).count() as i64
}

/// Number of numbered shared experts of the first block.
fn num_shared_experts(weights: &Weights, names: &LmNames) -> i64 {
    let is_there = |index: &i64| {
        let expert = index.to_string();
        let path = [names.feed_forward, names.shared_experts, &expert, names.gate];
        weights.find(&names.block_weight(0, &path)).is_some()
    };
    (0..).take_while(is_there).count() as i64
}

/// Whether the input and output embeddings are one tensor or have equal values. They are tied in a
/// file without output embeddings.
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
