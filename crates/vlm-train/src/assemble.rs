//! From paths to a model: reads the configurations and weights that a run starts from, and checks
//! that they fit each other.

use std::path::Path;

use tch::Device;
use vlm_data::ChatTokenizer;
use vlm_model::weights::Weights;
use vlm_model::{ClipVisionConfig, LmConfig, Vlm};

use crate::TrainError;
use crate::config::{ModelConfig, ShapeRequest};

const EMBEDDINGS: &str = "tok_embeddings.weight";
const OUTPUT: &str = "output.weight";

/// Shapes of the parts, settled and checked against each other and the files.
#[derive(Debug, Clone)]
pub struct Shapes {
    /// The language model.
    pub lm: LmConfig,
    /// The vision encoder.
    pub vision: ClipVisionConfig,
}

/// Settles the shapes: what the user asked for, else `config.json` beside the weights, else the
/// default. No tensor is made.
///
/// # Errors
/// A configuration that cannot be read; a tokenizer with more tokens than the model has rows; a
/// shape asked for that is not the weights'.
pub fn settle_shapes(
    config: &ModelConfig,
    tokenizer: &ChatTokenizer,
    max_seq_len: usize,
) -> Result<Shapes, TrainError> {
    let vision = ClipVisionConfig::from_file(&config.vision.join("config.json")).map_err(usage)?;
    let beside = config.lm.as_deref().and_then(config_beside);
    let mut lm = match &beside {
        Some(path) => LmConfig::from_file(path).map_err(usage)?,
        None => LmConfig::default(),
    };
    let ShapeRequest { dim, n_layers, n_heads, n_kv_heads, dropout, use_moe } = config.shape;
    let reshaped = dim.is_some_and(|dim| dim != lm.dim);
    if reshaped {
        // A feed-forward width from a file belongs to the hidden size beside it.
        lm.hidden_dim = None;
    }
    lm.dim = dim.unwrap_or(lm.dim);
    lm.n_layers = n_layers.unwrap_or(lm.n_layers);
    lm.n_heads = n_heads.unwrap_or(lm.n_heads);
    lm.n_kv_heads = n_kv_heads.unwrap_or(lm.n_kv_heads);
    lm.dropout = dropout.unwrap_or(lm.dropout);
    lm.use_moe = use_moe.unwrap_or(lm.use_moe);
    lm.max_seq_len = lm.max_seq_len.max(max_seq_len as i64);
    if config.lm.is_none() {
        lm.vocab_size = tokenizer.vocab_size() as i64;
    }
    lm.validate().map_err(usage)?;
    if let Some(path) = &config.lm {
        check_against_file(&mut lm, path, beside.as_deref())?;
    }
    if (tokenizer.vocab_size() as i64) > lm.vocab_size {
        return Err(TrainError::Usage(format!(
            "the tokenizer {} has {} tokens, but the language model has {} rows of embeddings; give \
             the tokenizer that the weights were trained with",
            config.tokenizer.display(),
            tokenizer.vocab_size(),
            lm.vocab_size
        )));
    }
    Ok(Shapes { lm, vision })
}

/// Random weights, then those of the files. Names that may be missing from the language model's
/// file: the projector's, which a pretraining run starts anew.
///
/// # Errors
/// A missing or misshapen tensor, by name with both shapes; a file that cannot be read.
pub fn build_model(
    config: &ModelConfig,
    shapes: &Shapes,
    seed: u64,
    device: Device,
) -> Result<Vlm, TrainError> {
    tch::manual_seed(seed as i64);
    let model = Vlm::new(&shapes.lm, &shapes.vision, device)?;
    if let Some(path) = &config.lm {
        load_lm(path, &model)?;
    }
    load_vision(&config.vision, &model)?;
    model.freeze(&config.freeze);
    Ok(model)
}

fn load_lm(path: &Path, model: &Vlm) -> Result<(), TrainError> {
    let weights = Weights::open(path).map_err(|e| usage_at(path, e))?;
    let report = weights
        .load_into(&model.params().named(), |name| name.starts_with("vision_proj."))
        .map_err(|e| TrainError::Usage(e.to_string()))?;
    if !report.missing.is_empty() {
        tracing::info!("{} holds no projector: it starts from random values", path.display());
    }
    let mut surplus = report.surplus;
    if surplus.iter().any(|name| name == OUTPUT) {
        check_tied(&weights, path)?;
        surplus.retain(|name| name != OUTPUT);
    }
    // The reference's own checkpoints may carry the encoder along; ours comes from --vision.
    surplus.retain(|name| !name.starts_with("vision_encoder."));
    warn_of_surplus(path, &surplus);
    Ok(())
}

/// A file that cannot say that two tensors are one must at least hold them equal.
fn check_tied(weights: &Weights, path: &Path) -> Result<(), TrainError> {
    let read = |name: &str| weights.get(name).map_err(|e| TrainError::at(path, e));
    if read(OUTPUT)? == read(EMBEDDINGS)? {
        return Ok(());
    }
    Err(usage_at(
        path,
        "output.weight is not tok_embeddings.weight; this model ties the two, and loading it would \
         change its answers",
    ))
}

fn load_vision(folder: &Path, model: &Vlm) -> Result<(), TrainError> {
    let weights = Weights::open(folder).map_err(|e| usage_at(folder, e))?;
    let report = weights
        .load_into(&model.vision_params().named(), |_| false)
        .map_err(|e| TrainError::Usage(e.to_string()))?;
    // A whole CLIP has a text tower and heads that only pooled outputs pass through.
    let is_expected = |name: &str| {
        !name.starts_with("vision_model.")
            || name.starts_with("vision_model.post_layernorm.")
            || name.ends_with(".position_ids")
    };
    let surplus: Vec<String> =
        report.surplus.into_iter().filter(|name| !is_expected(name)).collect();
    warn_of_surplus(folder, &surplus);
    Ok(())
}

fn warn_of_surplus(path: &Path, names: &[String]) {
    if !names.is_empty() {
        tracing::warn!(
            "{}: {} tensors are not this model's and were left out: {}",
            path.display(),
            names.len(),
            names.join(", ")
        );
    }
}

/// The `config.json` that lies beside a weight file (or in it, for a folder), when it is a language
/// model's.
fn config_beside(weights: &Path) -> Option<std::path::PathBuf> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    json.get("dim").is_some().then_some(path)
}

/// Compares the settled shape with the tensors of the weight file, before any is read; takes the
/// vocabulary from there.
fn check_against_file(
    lm: &mut LmConfig,
    path: &Path,
    config: Option<&Path>,
) -> Result<(), TrainError> {
    let weights = Weights::open(path).map_err(|e| usage_at(path, e))?;
    let shape = |name: &str| weights.shape(name);
    let Some([vocab_size, dim]) = shape(EMBEDDINGS).map(|s| [s[0], s[1]]) else {
        return Err(usage_at(
            path,
            "no tok_embeddings.weight of two dimensions: these are not a MiniMind language model's \
             weights",
        ));
    };
    let asked = config
        .map_or("asked for".to_owned(), |path| format!("asked for (flags and {})", path.display()));
    let disagree = |what: &str, found: i64, expected: i64, flag: &str| {
        Err(TrainError::Usage(format!(
            "{} has {what} {found}, but {expected} is {asked}; pass --{flag} {found}, or other \
             weights",
            path.display()
        )))
    };
    if dim != lm.dim {
        return disagree("dim", dim, lm.dim, "dim");
    }
    let is_first = |name: &&str| name.ends_with(".attention_norm.weight");
    let layers = weights.names().filter(is_first).count() as i64;
    if layers != lm.n_layers {
        return disagree("n-layers", layers, lm.n_layers, "n-layers");
    }
    lm.vocab_size = vocab_size;
    if let Some(&width) = shape("layers.0.feed_forward.w1.weight").and_then(|s| s.first()) {
        lm.hidden_dim = Some(width);
    }
    if let Some(&kv_dim) = shape("layers.0.attention.wk.weight").and_then(|s| s.first())
        && kv_dim != lm.n_kv_heads * lm.head_dim()
    {
        let fitting = kv_dim / lm.head_dim();
        return disagree("n-kv-heads", fitting, lm.n_kv_heads, "n-kv-heads");
    }
    Ok(())
}

fn usage(error: vlm_model::ModelError) -> TrainError {
    TrainError::Usage(error.to_string())
}

fn usage_at(path: &Path, error: impl std::fmt::Display) -> TrainError {
    TrainError::Usage(format!("{}: {error}", path.display()))
}
