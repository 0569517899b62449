//! Finds the files of a model: the weights in a folder, and the vision encoder and the tokenizer
//! that belong to them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vlm_model::weights::Weights;
use vlm_model::{ForeignModel, LmConfig};

use crate::InferError;

/// The folder that a model was found in.
pub(crate) struct ModelFolder {
    /// The folder of the run, or the folder of the weights file.
    folder: PathBuf,
    /// Contents of its `config.json`; null without one.
    pub(crate) config: Value,
    /// The weights file, or a folder with weights in Hugging Face format.
    pub(crate) weights: PathBuf,
}

impl ModelFolder {
    /// Finds the weights at `model`, a folder or a weights file.
    ///
    /// # Errors
    /// There are no weights; `config.json` cannot be read.
    pub(crate) fn find(model: &Path) -> Result<Self, InferError> {
        let folder = if model.is_dir() { Some(model) } else { model.parent() };
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let config = read_config(&folder)?;
        let weights = find_weights(model, &config)?;
        Ok(Self { folder, config, weights })
    }

    /// The tokens that ended a turn when the model was trained, from `config.json`. The
    /// `generation_config.json` that was used then may no longer be available.
    pub(crate) fn stop_token_ids(&self) -> Vec<i64> {
        // Only from a file of this program, because other files often have an arbitrary value.
        if self.config["image_token"].is_null() {
            return Vec::new();
        }
        match &self.config["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_i64).collect(),
            id => id.as_i64().into_iter().collect(),
        }
    }

    /// The setting `image_size` of the run that trained the model.
    pub(crate) fn image_size(&self) -> Option<i64> {
        image_size(&self.config)
    }

    /// The folder of the part `name`, `vision` or `tokenizer`: `given`, or else that of
    /// [`part_of_run`].
    ///
    /// # Errors
    /// The folder cannot be found; the message names the setting for it.
    pub(crate) fn part(&self, given: &Option<PathBuf>, name: &str) -> Result<PathBuf, InferError> {
        match given {
            Some(path) => Ok(path.clone()),
            None => find_part(&self.folder, &self.config, name),
        }
    }
}

/// The contents of `config.json` in a folder; null without one.
fn read_config(folder: &Path) -> Result<Value, InferError> {
    let path = folder.join("config.json");
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| InferError::at(&path, e)),
        // A missing folder is reported when its weights are looked for.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Value::Null)
        }
        Err(error) => Err(InferError::io(&path, "read it")(error)),
    }
}

/// The stages of training, the latest first.
const STAGES: [&str; 2] = ["sft", "pretrain"];

/// Name without extension of the weights files of a run of `stage`, as in the reference.
pub fn weights_name(stage: &str, dim: i64, use_moe: bool) -> String {
    format!("{stage}_vlm_{dim}{}", if use_moe { "_moe" } else { "" })
}

/// The weights at `model`: the file itself, or in the folder of a run the weights of its latest
/// stage.
fn find_weights(model: &Path, config: &Value) -> Result<PathBuf, InferError> {
    if model.is_file() {
        return Ok(model.to_owned());
    }
    if !model.is_dir() {
        return Err(InferError::unusable(format!(
            "`model` {} does not exist; expected the folder of a run (its `out_dir`), an exported \
             folder, or a weights file",
            model.display()
        )));
    }
    let shape = LmConfig::from_json(config).unwrap_or_default();
    let (dim, use_moe) = (shape.dim, shape.use_moe);
    for stage in STAGES {
        for extension in ["safetensors", "pth"] {
            let name = format!("{}.{extension}", weights_name(stage, dim, use_moe));
            let path = model.join(name);
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    // A folder in one of the other formats that `vlm-model` reads.
    if Weights::open(model).is_ok() {
        return Ok(model.to_owned());
    }
    Err(InferError::unusable(format!(
        "`model` {}: the folder has no weights; expected {}.safetensors or .pth, as a run writes",
        model.display(),
        weights_name("pretrain", dim, use_moe)
    )))
}

/// The folder of the part `vision` or `tokenizer` that belongs to the weights of a run: in the
/// folder of the weights, or the one that `config.json` names. `None` if it cannot be found.
pub fn part_of_run(weights: &Path, part: &str) -> Option<PathBuf> {
    part_of_model(weights, part).ok()
}

/// As [`part_of_run`], for any model; the error says where the part is to be found.
///
/// # Errors
/// The part cannot be found; `config.json` cannot be read.
pub fn part_of_model(weights: &Path, part: &str) -> Result<PathBuf, InferError> {
    let folder = if weights.is_dir() { Some(weights) } else { weights.parent() };
    let folder = folder.unwrap_or(Path::new("."));
    find_part(folder, &read_config(folder)?, part)
}

/// The setting `image_size` of the run that wrote the weights, from `config.json` in their folder.
/// An exported model has none: its encoder has this size.
pub fn image_size_of_run(weights: &Path) -> Option<i64> {
    let folder = if weights.is_dir() { Some(weights) } else { weights.parent() };
    image_size(&read_config(folder.unwrap_or(Path::new("."))).ok()?)
}

fn image_size(config: &Value) -> Option<i64> {
    config["run"]["model"]["image_size"].as_i64()
}

/// The weights file of the run in `folder`, that of the latest stage; `None` if `folder` is not the
/// folder of a run.
pub fn weights_of_run(folder: &Path) -> Option<PathBuf> {
    let config = read_config(folder).ok()?;
    let is_run = folder.is_dir() && config["run"].is_object();
    is_run.then(|| find_weights(folder, &config).ok())?
}

/// `dim` and `use_moe` of the run in `folder`, from its `config.json`.
pub fn shape_of_run(folder: &Path) -> Option<(i64, bool)> {
    let config = read_config(folder).ok()?;
    let shape = config.is_object().then(|| LmConfig::from_json(&config).ok())??;
    Some((shape.dim, shape.use_moe))
}

/// The part in the folder of the model (a trained encoder, or any part of an exported model), or
/// else the one that `config.json` of the run names.
fn find_part(folder: &Path, config: &Value, name: &str) -> Result<PathBuf, InferError> {
    let (own, mark) = match name {
        "tokenizer" => (folder.to_owned(), "tokenizer.json"),
        _ => (folder.join(name), "config.json"),
    };
    if own.join(mark).is_file() {
        return Ok(own);
    }
    let foreign = ForeignModel::of(config);
    if name == "vision" && foreign.is_some() {
        return Ok(folder.to_owned());
    }
    let named = config["run"]["model"][name].as_str().map(PathBuf::from);
    if let Some(path) = &named
        && path.is_dir()
    {
        return Ok(path.clone());
    }
    Err(InferError::unusable(match named {
        Some(path) => format!(
            "{} names the {name} {}, which does not exist; set `{name}`",
            folder.join("config.json").display(),
            path.display()
        ),
        None => {
            let advice = match name {
                "tokenizer" => foreign.and_then(|model| model.tokenizer_advice()),
                _ => encoder_advice(config),
            };
            format!(
                "{}: the {name} of the model is unknown; set `{name}`{}",
                folder.display(),
                advice.map_or(String::new(), |advice| format!(". {advice}"))
            )
        }
    }))
}

/// The encoder that a `minimind-v` needs, whose folder does not hold it.
fn encoder_advice(config: &Value) -> Option<String> {
    let is_minimind_v = config["model_type"] == "minimind-v";
    is_minimind_v.then(|| {
        let width = config["image_hidden_size"].as_i64().unwrap_or(768);
        format!(
            "minimind-v does not hold its encoder: give the one that it was trained with, whose \
             features have the width {width} (minimind-3v: SigLIP 2 base, patches of 32 pixels, \
             images of 256)"
        )
    })
}
