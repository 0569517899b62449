//! Reads the configuration of a vision encoder from the files of all programs: Hugging Face's, those
//! of whole models, and open_clip's.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config_file::{in_file, read_json};
use crate::foreign::ForeignModel;
use crate::vision::check_keys;
use crate::{OpenClip, ShapeError, VisionConfig};

impl VisionConfig {
    /// Reads a Hugging Face `config.json` of a whole CLIP or SigLIP model (with `vision_config`), of
    /// a vision tower, or of a [`ForeignModel`].
    ///
    /// # Errors
    /// The file cannot be read, belongs to another model, or its numbers describe no model.
    pub fn from_file(path: &Path) -> Result<Self, ShapeError> {
        Self::from_json(&read_json(path)?).map_err(in_file(path))
    }

    /// As [`Self::from_file`], from the file's content.
    ///
    /// # Errors
    /// The configuration belongs to another model, or its numbers describe no model.
    pub fn from_json(json: &Value) -> Result<Self, ShapeError> {
        if let Some(model) = ForeignModel::of(json) {
            return model.vision();
        }
        Self::from_tower_json(json)
    }

    /// Unknown keys of the configuration of the encoder in `folder` that are ignored although they
    /// have a value: worth a warning. Returns the path of the file, too.
    ///
    /// # Errors
    /// The file cannot be read, or a key may change what the model computes.
    pub fn unread_keys_in(folder: &Path) -> Result<(PathBuf, Vec<String>), ShapeError> {
        if let Some(tower) = OpenClip::beside(folder)? {
            return Ok((tower.path().to_owned(), tower.unread_keys()?));
        }
        let path = folder.join("config.json");
        let unread = Self::unread_keys_of(&path)?;
        Ok((path, unread))
    }

    fn unread_keys_of(path: &Path) -> Result<Vec<String>, ShapeError> {
        let json = read_json(path)?;
        if let Some(model) = ForeignModel::of(&json) {
            // Keys that are not supported are an error only if the whole model is used.
            return Ok(model.unread_keys().unwrap_or_default());
        }
        let within = &json["vision_config"];
        check_keys(if within.is_object() { within } else { &json }).map_err(in_file(path))
    }
}
