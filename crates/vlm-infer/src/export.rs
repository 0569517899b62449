//! Exports a model as a folder in Hugging Face format, from which it can be loaded again.

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

/// Files of a tokenizer. A tokenizer need not have all of them.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
];

/// Folders with named chat templates.
const TEMPLATE_FOLDERS: [&str; 2] = ["chat_templates", "additional_chat_templates"];

const GENERATION_CONFIG: &str = "generation_config.json";

/// Whether [`export_hf`] writes a file or folder with this name, other than weights.
pub fn is_exported_name(name: &str) -> bool {
    ["config.json", PREPROCESSOR, "vision", GENERATION_CONFIG].contains(&name)
        || TOKENIZER_FILES.contains(&name)
        || TEMPLATE_FOLDERS.contains(&name)
}

/// The model to export.
#[derive(Debug, Clone)]
pub struct ExportSource {
    /// The folder of a run, a weights file, or a folder with one.
    pub model: PathBuf,
    /// Folder of the vision encoder; `None` for the one that `config.json` names.
    pub vision: Option<PathBuf>,
    /// Folder of the tokenizer; `None` for the one that `config.json` names.
    pub tokenizer: Option<PathBuf>,
}

/// The parts to export, which are found and checked before anything is written.
struct Parts {
    weights: Weights,
    lm: LmConfig,
    tokenizer: PathBuf,
    /// Folder and shape of the vision encoder; `None` for a language model alone.
    vision: Option<(PathBuf, VisionConfig)>,
    /// The exported `config.json`.
    config: Value,
}

/// Writes the folder `target`: `config.json` in the format of the family, `model.safetensors` (or
/// shards of at most `max_shard_bytes` bytes), the tokenizer, and for a vision-language model
/// `preprocessor_config.json` and the encoder in `vision/`. Values and dtypes are those of the
/// source. The folder is written atomically; an existing one is replaced.
///
/// # Errors
/// A part that cannot be found, with the setting that names it; parts that do not fit each other; a
/// failure of the file system.
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
            copy_if_exists(&parts.tokenizer, folder, name)?;
        }
        for name in TEMPLATE_FOLDERS {
            copy_folder_if_exists(&parts.tokenizer.join(name), &folder.join(name))?;
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
        let (mut lm, config_path) = starting_shape(&path)?;
        adopt(&mut lm, &weights, config_path.as_deref())?;
        check_tied(&lm, &weights).map_err(InferError::file)?;
        let tokenizer = folder.part(&source.tokenizer, "tokenizer")?;
        let has_vision = source.vision.is_some() || weights.names().any(is_projector);
        let vision = has_vision.then(|| folder.part(&source.vision, "vision"));
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

    /// All tensors of the language model and the projector. In the formats of Hugging Face, tied
    /// tensors are written once.
    fn tensors(&self) -> Result<Vec<(String, Tensor)>, InferError> {
        let mut tensors = self.weights.all()?;
        // A file may also hold other parts, such as the vision encoder.
        let names = self.lm.names();
        tensors.retain(|(name, _)| names.is_computed_from(name) || is_projector(name));
        if self.lm.family != LmFamily::MiniMind && self.lm.tie_word_embeddings {
            let output = LmNames::weight(self.lm.names().output);
            tensors.retain(|(name, _)| *name != output);
        }
        Ok(tensors)
    }
}

/// Reads the shape of the vision encoder, and checks it against its preprocessing and the
/// projector.
fn read_vision(folder: PathBuf, weights: &Weights) -> Result<(PathBuf, VisionConfig), InferError> {
    let config = VisionConfig::from_file(&folder.join("config.json"))?;
    image_processor(&folder, &config)?;
    if projector_of(weights).is_none() {
        return Err(InferError::unusable(format!(
            "`vision` {}: {} has no projector, so the encoder cannot be used; leave `vision` out",
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

/// Writes only the vision encoder; the text tower of a complete CLIP or SigLIP model is left out.
fn write_vision(from: &Path, config: &VisionConfig, target: &Path) -> Result<(), InferError> {
    fs::create_dir(target).map_err(InferError::io(target, "create it"))?;
    let weights = open_vision_encoder(from)?;
    let mut tensors = weights.all()?;
    tensors.retain(|(name, _)| name.starts_with("vision_model."));
    save_shards(target, &tensors, u64::MAX)?;
    write_preprocessor(from, config, target)?;
    write_json(&target.join("config.json"), &config.to_json())
}

/// Writes the tokenizer's `generation_config.json` with all tokens that end a generated text.
/// Without such a file nothing is written, because `config.json` names these tokens, too.
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

fn copy_folder_if_exists(from: &Path, to: &Path) -> Result<(), InferError> {
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir(to).map_err(InferError::io(to, "create it"))?;
    for entry in fs::read_dir(from).map_err(InferError::io(from, "list it"))? {
        let entry = entry.map_err(InferError::io(from, "list it"))?;
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))
                .map_err(InferError::io(&entry.path(), "copy it"))?;
        }
    }
    Ok(())
}

fn copy_if_exists(from: &Path, to: &Path, name: &str) -> Result<(), InferError> {
    let source = from.join(name);
    if source.is_file() {
        fs::copy(&source, to.join(name)).map_err(InferError::io(&source, "copy it"))?;
    }
    Ok(())
}
