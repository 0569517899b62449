//! The files of a model on disk: which weights a folder holds, and where the encoder and the tokenizer
//! that belong to them are.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vlm_model::LmConfig;
use vlm_model::weights::Weights;

use crate::InferError;

/// The folder that a model was found in.
pub(crate) struct ModelFolder {
    /// The folder of the run, or the one that the weight file is in.
    folder: PathBuf,
    /// Its `config.json`; null where there is none.
    pub(crate) config: Value,
    /// The weight file, or a folder with weights in Hugging Face form.
    pub(crate) weights: PathBuf,
}

impl ModelFolder {
    /// Finds the weights at `model`, a folder or a weight file.
    ///
    /// # Errors
    /// No weights are there; `config.json` cannot be read.
    pub(crate) fn find(model: &Path) -> Result<Self, InferError> {
        let folder = if model.is_dir() { Some(model) } else { model.parent() };
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let config = read_config(&folder)?;
        let weights = find_weights(model, &config)?;
        Ok(Self { folder, config, weights })
    }

    /// The tokens that ended a turn when the model was trained: the `generation_config.json` that was
    /// beside the language model then may be elsewhere now.
    pub(crate) fn stop_token_ids(&self) -> Vec<i64> {
        // Only what this program wrote: other files often hold a value that nobody chose.
        if self.config["image_token"].is_null() {
            return Vec::new();
        }
        match &self.config["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_i64).collect(),
            id => id.as_i64().into_iter().collect(),
        }
    }

    /// The `vision` or `tokenizer` folder: the one given, else as [`part_of_run`] finds it.
    ///
    /// # Errors
    /// There is none; the message names the option that gives one.
    pub(crate) fn part(&self, given: &Option<PathBuf>, name: &str) -> Result<PathBuf, InferError> {
        match given {
            Some(path) => Ok(path.clone()),
            None => find_part(&self.folder, &self.config, name),
        }
    }
}

/// The `config.json` of a folder; null where there is none.
fn read_config(folder: &Path) -> Result<Value, InferError> {
    let path = folder.join("config.json");
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| InferError::at(&path, e)),
        // A folder that is not there is an error of whoever looks for the weights in it.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Value::Null)
        }
        Err(error) => Err(InferError::io(&path, "read it")(error)),
    }
}

/// The stages of training, the latest first.
const STAGES: [&str; 2] = ["sft", "pretrain"];

/// Name without extension of the weights that a run of `stage` leaves, as the reference has it.
pub fn weights_name(stage: &str, dim: i64, use_moe: bool) -> String {
    format!("{stage}_vlm_{dim}{}", if use_moe { "_moe" } else { "" })
}

/// The file itself where `model` is one; in a run's folder the weights of the later stage.
fn find_weights(model: &Path, config: &Value) -> Result<PathBuf, InferError> {
    if model.is_file() {
        return Ok(model.to_owned());
    }
    if !model.is_dir() {
        return Err(InferError::unusable(format!(
            "`model` {} is not there; expected the folder of a run (its `out_dir`), an exported folder, or \
             a weight file",
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
    // A folder in another form, as `vlm-model` knows them.
    if Weights::open(model).is_ok() {
        return Ok(model.to_owned());
    }
    Err(InferError::unusable(format!(
        "`model` {}: no weights there; expected {}.safetensors or .pth, which a run writes",
        model.display(),
        weights_name("pretrain", dim, use_moe)
    )))
}

/// The `vision` or `tokenizer` folder that belongs to these weights of a run.
pub fn part_of_run(weights: &Path, part: &str) -> Option<PathBuf> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    find_part(folder, &read_config(folder).ok()?, part).ok()
}

/// The weight file that the run in `folder` left, the later stage's where there are two; `None` where
/// `folder` is not the folder of a run.
pub fn weights_of_run(folder: &Path) -> Option<PathBuf> {
    let config = read_config(folder).ok()?;
    let is_run = folder.is_dir() && config["run"].is_object();
    is_run.then(|| find_weights(folder, &config).ok())?
}

/// `dim` and `use_moe` of the run in `folder`, as its `config.json` says.
pub fn shape_of_run(folder: &Path) -> Option<(i64, bool)> {
    let config = read_config(folder).ok()?;
    let shape = config.is_object().then(|| LmConfig::from_json(&config).ok())??;
    Some((shape.dim, shape.use_moe))
}

/// The part in the model's own folder (an encoder that was trained too, all parts of an exported
/// model), else the one that the run's `config.json` names.
fn find_part(folder: &Path, config: &Value, name: &str) -> Result<PathBuf, InferError> {
    let (beside, mark) = match name {
        "tokenizer" => (folder.to_owned(), "tokenizer.json"),
        _ => (folder.join(name), "config.json"),
    };
    if beside.join(mark).is_file() {
        return Ok(beside);
    }
    let named = config["run"]["model"][name].as_str().map(PathBuf::from);
    if let Some(path) = &named
        && path.is_dir()
    {
        return Ok(path.clone());
    }
    Err(InferError::unusable(match named {
        Some(path) => format!(
            "{} says that the {name} is {}, which is not there (any more); give `{name}`",
            folder.join("config.json").display(),
            path.display()
        ),
        None => format!("{} does not say where the {name} is; give `{name}`", folder.display()),
    }))
}
