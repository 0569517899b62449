//! Exports a model as a folder in Hugging Face format with this program's own keys, from which it can
//! be loaded again.

use std::fs;
use std::path::Path;

use vlm_model::VisionConfig;
use vlm_model::part_files::open_vision_encoder_as;
use vlm_model::weights::save_shards;

use super::file_names::{GENERATION_CONFIG, TEMPLATE_FOLDERS, TOKENIZER_FILES};
use super::parts::Parts;
use super::source::ExportSource;
use crate::InferError;
use crate::json_file::{read_json, write_json};
use crate::preprocessor::write_preprocessor;

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
