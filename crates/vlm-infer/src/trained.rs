//! A model that a run left, opened again to answer or to be judged.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use vlm_data::{ChatTokenizer, ImageProcessor};
use vlm_model::part_files::open_language_model;
use vlm_model::weights::Weights;
use vlm_model::{LmConfig, Vlm, is_projector};

use crate::InferError;
use crate::assemble::{ModelFiles, build_model, open_tokenizer, settle_shapes};
use crate::device::select_device;
use crate::precision::default_dtype;
use crate::preprocessor::image_processor;
use vlm_shapes::{Dtype, ShapeRequest};

/// Where a model is to be found.
#[derive(Debug, Clone)]
pub struct TrainedSource {
    /// The folder of a run, or a weight file; `config.json` there says what belongs to it.
    pub model: PathBuf,
    /// Another vision encoder's folder than `config.json` says.
    pub vision: Option<PathBuf>,
    /// Another tokenizer's folder than `config.json` says.
    pub tokenizer: Option<PathBuf>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Forward arithmetic; `None`: bfloat16 on CUDA, float32 on the CPU.
    pub dtype: Option<Dtype>,
}

/// A model with what belongs to it.
pub struct TrainedModel {
    /// The model, with nothing to be trained.
    pub model: Vlm,
    /// Its tokenizer.
    pub tokenizer: Arc<ChatTokenizer>,
    /// Its image preprocessing.
    pub processor: Arc<ImageProcessor>,
    /// Forward arithmetic.
    pub dtype: Dtype,
    /// The weight file that was read.
    pub weights: PathBuf,
}

impl TrainedModel {
    /// Finds and reads everything.
    ///
    /// # Errors
    /// A part that cannot be found, with the flag that names it; parts that do not fit each other;
    /// weights without a projector.
    pub fn open(source: &TrainedSource) -> Result<Self, InferError> {
        let device = select_device(&source.device)?;
        let origin = Origin::find(&source.model)?;
        let weights = origin.weights.clone();
        let files = ModelFiles {
            lm: Some(weights.clone()),
            vision: origin.part(&source.vision, "vision")?,
            tokenizer: origin.part(&source.tokenizer, "tokenizer")?,
            image_token: origin.written["image_token"].as_str().map(str::to_owned),
            projector: None,
        };
        let mut tokenizer = open_tokenizer(&files)?;
        tokenizer.add_stop_token_ids(&origin.stop_token_ids());
        let tokenizer = Arc::new(tokenizer);
        let shapes = settle_shapes(&files, &ShapeRequest::default(), &tokenizer, 0)?;
        let processor = Arc::new(image_processor(&files.vision, &shapes.vision)?);
        require_projector(&weights)?;
        let model = build_model(&files, &shapes, true, 0, device)?;
        model.params().set_trainable(|_| false);
        model.vision_params().set_trainable(|_| false);
        let dtype = source.dtype.unwrap_or_else(|| default_dtype(device));
        Ok(Self { model, tokenizer, processor, dtype, weights })
    }
}

/// Where a model was found, before its parts are looked for.
pub(crate) struct Origin {
    /// That of a run, or the one that the weights lie in.
    folder: PathBuf,
    /// What `config.json` there says.
    pub(crate) written: Value,
    /// The weight file, or a folder that stands for one.
    pub(crate) weights: PathBuf,
}

impl Origin {
    /// # Errors
    /// No weights there.
    pub(crate) fn find(model: &Path) -> Result<Self, InferError> {
        let folder = if model.is_dir() { Some(model) } else { model.parent() };
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let written = read_config(&folder);
        let weights = find_weights(model, &written)?;
        Ok(Self { folder, written, weights })
    }

    /// What ended an answer when the model was trained: the `generation_config.json` that was beside
    /// the language model then may be elsewhere now.
    fn stop_token_ids(&self) -> Vec<i64> {
        // Only what this program wrote: other files often hold a value that nobody chose.
        if self.written["image_token"].is_null() {
            return Vec::new();
        }
        match &self.written["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_i64).collect(),
            id => id.as_i64().into_iter().collect(),
        }
    }

    /// The `vision` or `tokenizer` folder: the one given, else as [`part_of_run`].
    ///
    /// # Errors
    /// Says that there is none, and the flag that names one.
    pub(crate) fn part(&self, given: &Option<PathBuf>, name: &str) -> Result<PathBuf, InferError> {
        match given {
            Some(path) => Ok(path.clone()),
            None => find_part(&self.folder, &self.written, name),
        }
    }
}

fn read_config(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The stages of training, the latest first.
const STAGES: [&str; 2] = ["sft", "pretrain"];

/// Name without extension of the weights that a run of `stage` leaves, as the reference has it.
pub fn weights_name(stage: &str, dim: i64, use_moe: bool) -> String {
    format!("{stage}_vlm_{dim}{}", if use_moe { "_moe" } else { "" })
}

/// A weight file as it is; of a run's folder the later stage's weights, whole.
fn find_weights(model: &Path, written: &Value) -> Result<PathBuf, InferError> {
    if model.is_file() {
        return Ok(model.to_owned());
    }
    if !model.is_dir() {
        return Err(InferError::unusable(format!(
            "--model {} is not there; expected the --out-dir of a run, or a weight file",
            model.display()
        )));
    }
    let shape = LmConfig::from_json(written).unwrap_or_default();
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
        "--model {}: no weights there; expected {}.safetensors or .pth, as `vlm pretrain` leaves \
         them",
        model.display(),
        weights_name("pretrain", dim, use_moe)
    )))
}

/// The `vision` or `tokenizer` folder that belongs to these weights of a run.
pub fn part_of_run(weights: &Path, part: &str) -> Option<PathBuf> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    find_part(folder, &read_config(folder), part).ok()
}

/// The weight file that the run in `folder` left, the later stage's where there are two; `None` where
/// `folder` is not the folder of a run.
pub fn weights_of_run(folder: &Path) -> Option<PathBuf> {
    let written = read_config(folder);
    let is_run = folder.is_dir() && written["run"].is_object();
    is_run.then(|| find_weights(folder, &written).ok())?
}

/// `dim` and `use_moe` of the run in `folder`, as its `config.json` says.
pub fn shape_of_run(folder: &Path) -> Option<(i64, bool)> {
    let written = read_config(folder);
    let shape = written.is_object().then(|| LmConfig::from_json(&written).ok())??;
    Some((shape.dim, shape.use_moe))
}

/// The part in the model's own folder (an encoder that was trained too, all parts of an exported
/// model), else the one that the run's `config.json` names.
fn find_part(folder: &Path, written: &Value, name: &str) -> Result<PathBuf, InferError> {
    let (beside, mark) = match name {
        "tokenizer" => (folder.to_owned(), "tokenizer.json"),
        _ => (folder.join(name), "config.json"),
    };
    if beside.join(mark).is_file() {
        return Ok(beside);
    }
    let named = written["run"]["model"][name].as_str().map(PathBuf::from);
    if let Some(path) = &named
        && path.is_dir()
    {
        return Ok(path.clone());
    }
    Err(InferError::unusable(match named {
        Some(path) => format!(
            "{} says that the {name} is {}, which is not there (any more); give --{name}",
            folder.join("config.json").display(),
            path.display()
        ),
        None => format!("{} does not say where the {name} is; give --{name}", folder.display()),
    }))
}

/// An answer about a picture by way of a random projector is no answer.
fn require_projector(path: &Path) -> Result<(), InferError> {
    let weights = open_language_model(path).map_err(InferError::file)?;
    if weights.names().any(is_projector) {
        return Ok(());
    }
    Err(InferError::unusable(format!(
        "{}: there is no projector in it, so this model has not learned to see; give the weights \
         that `vlm pretrain` leaves",
        path.display()
    )))
}
