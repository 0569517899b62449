//! A model as one folder in Hugging Face form, that `--lm` and `--model` take again.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use vlm_data::ChatTokenizer;
use vlm_model::detect::{check_tied, projector_of};
use vlm_model::names::LmNames;
use vlm_model::part_files::{open_language_model, open_vision_encoder};
use vlm_model::weights::{Weights, save_shards};
use vlm_model::{LmConfig, LmFamily, ProjectorConfig, VisionConfig, is_projector};

use crate::InferError;
use crate::assemble::{ModelFiles, Shapes, adopt, open_tokenizer, starting_shape, stop_token_ids};
use crate::json_file::write_json;
use crate::model_folder::ModelFolder;
use crate::preprocessor::{PREPROCESSOR, image_processor, write_preprocessor};

/// The files of a tokenizer, as far as there are any.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
];

/// Folders of chat templates with names.
const TEMPLATE_FOLDERS: [&str; 2] = ["chat_templates", "additional_chat_templates"];

const GENERATION_CONFIG: &str = "generation_config.json";

/// Whether [`export_hf`] writes a file or folder of this name, weights apart.
pub fn is_exported_name(name: &str) -> bool {
    ["config.json", PREPROCESSOR, "vision", GENERATION_CONFIG].contains(&name)
        || TOKENIZER_FILES.contains(&name)
        || TEMPLATE_FOLDERS.contains(&name)
}

/// What is exported.
#[derive(Debug, Clone)]
pub struct ExportSource {
    /// The folder of a run, a weight file, or a folder with one.
    pub model: PathBuf,
    /// Another vision encoder's folder than `config.json` says.
    pub vision: Option<PathBuf>,
    /// Another tokenizer's folder than `config.json` says.
    pub tokenizer: Option<PathBuf>,
}

/// Everything found and checked, before anything is written.
struct Parts {
    weights: Weights,
    lm: LmConfig,
    tokenizer: PathBuf,
    /// Of a model that sees: the encoder's folder, its shape and what `config.json` says.
    vision: Option<(PathBuf, VisionConfig)>,
    config: Value,
}

/// Writes `target`: `config.json` in the family's own form, `model.safetensors` (or shards of
/// `max_shard_bytes`), the tokenizer's files, and for a model that sees `preprocessor_config.json`
/// and the encoder in `vision/`. Values and dtypes are those of the source, bit for bit. The folder
/// appears whole or not at all; one that is there is replaced.
///
/// # Errors
/// A part that cannot be found, with the flag that names it; parts that do not fit each other; the
/// system's.
pub fn export_hf(
    source: &ExportSource,
    target: &Path,
    max_shard_bytes: u64,
) -> Result<(), InferError> {
    let parts = Parts::find(source)?;
    let tensors = parts.tensors()?;
    vlm_torch::write_folder_atomically(target, |folder| {
        save_shards(folder, &tensors, max_shard_bytes)?;
        for name in TOKENIZER_FILES {
            copy_if_there(&parts.tokenizer, folder, name)?;
        }
        for name in TEMPLATE_FOLDERS {
            copy_folder_if_there(&parts.tokenizer.join(name), &folder.join(name))?;
        }
        write_generation_config(&parts, folder)?;
        if let Some((from, config)) = &parts.vision {
            write_preprocessor(from, config, folder)?;
            write_vision(from, config, &folder.join("vision"))?;
        }
        write_json(&folder.join("config.json"), &parts.config)
    })
}

impl Parts {
    fn find(source: &ExportSource) -> Result<Self, InferError> {
        let folder = ModelFolder::find(&source.model)?;
        let (run_config, path) = (&folder.config, folder.weights.clone());
        let weights = open_language_model(&path).map_err(InferError::file)?;
        let (mut lm, beside) = starting_shape(&path)?;
        adopt(&mut lm, &weights, beside.as_deref())?;
        check_tied(&lm, &weights).map_err(InferError::file)?;
        let tokenizer = folder.part(&source.tokenizer, "tokenizer")?;
        let sees = source.vision.is_some() || weights.names().any(is_projector);
        let vision = sees.then(|| folder.part(&source.vision, "vision"));
        let vision = vision.transpose()?;
        let opened = open_tokenizer(&ModelFiles {
            lm: Some(path),
            vision: vision.clone().unwrap_or_default(),
            tokenizer: tokenizer.clone(),
            image_token: run_config["image_token"].as_str().map(str::to_owned),
            projector: None,
        })?;
        let vision = vision.map(|folder| read_vision(folder, &weights)).transpose()?;
        let config = describe(&lm, vision.as_ref().map(|(_, config)| config), &weights, &opened)?;
        Ok(Self { weights, lm, tokenizer, vision, config })
    }

    /// All tensors; in Hugging Face's forms a tied tensor has one name.
    fn tensors(&self) -> Result<Vec<(String, Tensor)>, InferError> {
        let mut tensors = self.weights.all()?;
        // A file may hold other parts too, of a joined model or the encoder.
        let names = self.lm.names();
        tensors.retain(|(name, _)| names.is_computed_from(name) || is_projector(name));
        if self.lm.family != LmFamily::MiniMind && self.lm.tie_word_embeddings {
            let output = LmNames::weight(self.lm.names().output);
            tensors.retain(|(name, _)| *name != output);
        }
        Ok(tensors)
    }
}

/// The encoder's folder with its shape, checked against its preprocessing and the projector.
fn read_vision(folder: PathBuf, weights: &Weights) -> Result<(PathBuf, VisionConfig), InferError> {
    let config = VisionConfig::from_file(&folder.join("config.json"))?;
    image_processor(&folder, &config)?;
    if projector_of(weights).is_none() {
        return Err(InferError::unusable(format!(
            "--vision {}: {} holds no projector that could join it to the language model; leave \
             --vision out",
            folder.display(),
            weights.path().display()
        )));
    }
    Ok((folder, config))
}

/// The exported `config.json`.
fn describe(
    lm: &LmConfig,
    vision: Option<&VisionConfig>,
    weights: &Weights,
    tokenizer: &ChatTokenizer,
) -> Result<Value, InferError> {
    let mut tree = match (vision, projector_of(weights)) {
        (Some(vision), Some(kind)) => {
            let projector = ProjectorConfig::new(kind, vision)?;
            Shapes { lm: lm.clone(), vision: vision.clone(), projector }.describe(tokenizer)
        }
        _ => lm.to_json(),
    };
    if lm.family == LmFamily::MiniMind {
        tree["model_type"] = json!("minimind");
    }
    tree["eos_token_id"] = stop_token_ids(tokenizer);
    tree["pad_token_id"] = json!(tokenizer.pad_token_id());
    let dtype = weights.kind(&LmNames::weight(lm.names().embeddings));
    tree["torch_dtype"] = json!(match dtype {
        Some(Kind::BFloat16) => "bfloat16",
        Some(Kind::Half) => "float16",
        _ => "float32",
    });
    Ok(tree)
}

/// The encoder by itself: of a whole CLIP or SigLIP the text tower is left out.
fn write_vision(from: &Path, config: &VisionConfig, target: &Path) -> Result<(), InferError> {
    fs::create_dir(target).map_err(InferError::io(target, "make it"))?;
    let weights = open_vision_encoder(from)?;
    let mut tensors = weights.all()?;
    tensors.retain(|(name, _)| name.starts_with("vision_model."));
    save_shards(target, &tensors, u64::MAX)?;
    write_preprocessor(from, config, target)?;
    write_json(&target.join("config.json"), &config.to_json())
}

/// The tokenizer's own settings for generation, with all tokens that end an answer; nothing where it
/// has none, since `config.json` names these tokens too.
fn write_generation_config(parts: &Parts, folder: &Path) -> Result<(), InferError> {
    let source = parts.tokenizer.join(GENERATION_CONFIG);
    if !source.is_file() {
        return Ok(());
    }
    let text = fs::read_to_string(&source).map_err(InferError::io(&source, "read it"))?;
    let mut settings: Value =
        serde_json::from_str(&text).map_err(|error| InferError::at(&source, error))?;
    if settings.is_object() {
        settings["eos_token_id"] = parts.config["eos_token_id"].clone();
    }
    write_json(&folder.join(GENERATION_CONFIG), &settings)
}

fn copy_folder_if_there(from: &Path, to: &Path) -> Result<(), InferError> {
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir(to).map_err(InferError::io(to, "make it"))?;
    for entry in fs::read_dir(from).map_err(InferError::io(from, "list it"))? {
        let entry = entry.map_err(InferError::io(from, "list it"))?;
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))
                .map_err(InferError::io(&entry.path(), "copy it"))?;
        }
    }
    Ok(())
}

fn copy_if_there(from: &Path, to: &Path, name: &str) -> Result<(), InferError> {
    let source = from.join(name);
    if source.is_file() {
        fs::copy(&source, to.join(name)).map_err(InferError::io(&source, "copy it"))?;
    }
    Ok(())
}
