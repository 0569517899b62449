//! Exports a model: as a folder in Hugging Face format with this program's own keys, from which it
//! can be loaded again, or in a container of other programs ([`Container`]).

mod chat_files;
mod container;
mod gguf;
mod language_model;
mod lfm2_vl;
mod llava;
mod model_card;
mod parts;
mod smolvlm;
mod whole_model;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vlm_model::VisionConfig;
use vlm_model::part_files::open_vision_encoder_as;
use vlm_model::weights::save_shards;

use crate::InferError;
use crate::json_file::{read_json, write_json};
use crate::preprocessor::{PREPROCESSOR, write_preprocessor};

pub use container::Container;
use parts::Parts;
pub use whole_model::export_to;

/// Files of a tokenizer. A tokenizer need not have all of them.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
];

/// Folders with named chat templates.
const TEMPLATE_FOLDERS: [&str; 2] = ["chat_templates", "additional_chat_templates"];

const GENERATION_CONFIG: &str = "generation_config.json";

/// Files that only containers have.
const CONTAINER_FILES: [&str; 4] =
    ["processor_config.json", "README.md", "model.gguf", "mmproj.gguf"];

/// Whether [`export_hf`] or [`export_to`] writes a file or folder with this name, other than
/// weights in the format of Hugging Face.
pub fn is_exported_name(name: &str) -> bool {
    ["config.json", PREPROCESSOR, "vision", GENERATION_CONFIG].contains(&name)
        || CONTAINER_FILES.contains(&name)
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
    /// Export only the language model.
    pub without_vision: bool,
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
            copy_if_exists(&parts.tokenizer_folder, folder, name)?;
        }
        for name in TEMPLATE_FOLDERS {
            copy_folder_if_exists(&parts.tokenizer_folder.join(name), &folder.join(name))?;
        }
        write_generation_config(&parts, folder)?;
        if let Some((from, config)) = &parts.vision {
            write_preprocessor(from, config, folder)?;
            write_vision(from, config, &folder.join("vision"))?;
        }
        write_json(&folder.join("config.json"), &parts.config)
    })
}

/// The contents of a tokenizer's `tokenizer.json`.
///
/// # Errors
/// The file cannot be read or is not JSON.
fn tokenizer_json(folder: &Path) -> Result<Value, InferError> {
    read_json(&folder.join("tokenizer.json"))
}

/// Writes only the vision encoder; the text tower of a complete CLIP or SigLIP model is left out.
fn write_vision(from: &Path, config: &VisionConfig, target: &Path) -> Result<(), InferError> {
    fs::create_dir(target).map_err(InferError::io(target, "create it"))?;
    let weights = open_vision_encoder_as(from, config)?;
    let mut tensors = weights.all()?;
    tensors.retain(|(name, _)| name.starts_with("vision_model."));
    save_shards(target, &tensors, u64::MAX)?;
    write_preprocessor(from, config, target)?;
    write_json(&target.join("config.json"), &config.to_json())
}

/// Writes the tokenizer's `generation_config.json` with all tokens that end a generated text.
/// Without such a file nothing is written, because `config.json` names these tokens, too.
fn write_generation_config(parts: &Parts, folder: &Path) -> Result<(), InferError> {
    let source = parts.tokenizer_folder.join(GENERATION_CONFIG);
    if !source.is_file() {
        return Ok(());
    }
    let mut settings = read_json(&source)?;
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
