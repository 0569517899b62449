//! The shape of a language model from its `config.json` and its weights, checked against each other.

use std::path::{Path, PathBuf};

use serde_json::Value;
use vlm_model::detect::{adopt_shapes, default_config_for};
use vlm_model::names::LmNames;
use vlm_model::part_files::open_language_model;
use vlm_model::weights::Weights;
use vlm_model::{ForeignModel, LmConfig, LmFamily};

use crate::InferError;

/// The shape of the language model from `config.json` in the folder of the weights, with the path
/// of that file; without one, the default shape of the family that the names of the tensors belong
/// to.
pub(crate) fn starting_shape(weights: &Path) -> Result<(LmConfig, Option<PathBuf>), InferError> {
    if let Some(path) = language_model_config(weights)? {
        return Ok((LmConfig::from_file(&path).map_err(InferError::file)?, Some(path)));
    }
    let opened = open_language_model(weights).map_err(InferError::file)?;
    let lm = default_config_for(&opened).map_err(InferError::file)?;
    if lm.qkv_bias || lm.attention_output_bias || lm.mlp_bias {
        return Err(InferError::at(
            weights,
            "it has biases, so it is neither MiniMind nor SmolLM2, and its numbers of heads, \
             rope_theta and rms_norm_eps are unknown; put the config.json of its model next to it",
        ));
    }
    if lm.family == LmFamily::Llama {
        tracing::warn!(
            "{}: there is no config.json next to it; using the numbers of heads, rope_theta and \
             rms_norm_eps of SmolLM2-135M",
            weights.display()
        );
    }
    Ok((lm, None))
}

/// The path of the `config.json` in the folder of the weights, if it describes a language model.
///
/// # Errors
/// The file exists, but cannot be read or is not JSON.
fn language_model_config(weights: &Path) -> Result<Option<PathBuf>, InferError> {
    let folder = if weights.is_dir() { Some(weights) } else { weights.parent() };
    let path = folder.unwrap_or(Path::new(".")).join("config.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(InferError::at(&path, error)),
    };
    let json: Value = serde_json::from_str(&text).map_err(|error| InferError::at(&path, error))?;
    // In a folder with weights it must describe a language model; next to a file it may belong to
    // another model.
    let is_one = weights.is_dir() || LmConfig::is_language_model(&json);
    Ok(is_one.then_some(path))
}

/// Compares the shape with the tensors of the weights file, before any of them is read, and sets
/// the fields that only the tensors determine.
pub(crate) fn adopt(
    lm: &mut LmConfig,
    weights: &Weights,
    config: Option<&Path>,
) -> Result<(), InferError> {
    let path = weights.path();
    let by_names = default_config_for(weights).map_err(InferError::file)?;
    if by_names.names() != lm.names() {
        return Err(InferError::at(
            path,
            format!(
                "its tensors have the names of {:?}, but the config.json next to it describes {:?}",
                by_names.family, lm.family
            ),
        ));
    }
    // The two programs that write such a file differ in where they record tied embeddings, and
    // leave out the output embeddings if they are tied.
    if ForeignModel::beside(path).is_some() {
        let output = LmNames::weight(lm.names().output);
        lm.tie_word_embeddings |= weights.find(&output).is_none();
    }
    let asked = config
        .map_or("asked for".to_owned(), |path| format!("asked for (flags and {})", path.display()));
    adopt_shapes(lm, weights).map_err(|disagreement| {
        let (found, expected) = (disagreement.found, disagreement.expected);
        let experts = match disagreement.field {
            "n_routed_experts" => Some("routed experts"),
            "n_shared_experts" => Some("shared experts"),
            _ => None,
        };
        if let Some(experts) = experts {
            // There is no setting for these numbers.
            return InferError::at(
                path,
                format!(
                    "holds {found} {experts} a block, but {expected} is {asked}; use the \
                     config.json that belongs to these weights, or other weights"
                ),
            );
        }
        let flag = disagreement.field.replace('_', "-");
        InferError::unusable(format!(
            "{} has {flag} {found}, but {expected} is {asked}; pass --{flag} {found}, or other \
             weights",
            path.display()
        ))
    })?;
    lm.validate().map_err(InferError::file)
}
