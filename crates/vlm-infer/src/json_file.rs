//! Reads JSON files, and writes them atomically.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::InferError;

/// Writes a value as indented JSON, atomically: an existing file is replaced when the new one is
/// complete.
///
/// # Errors
/// A failure of the file system, with the path.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), InferError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| InferError::at(path, error))?;
    text.push(b'\n');
    vlm_torch::write_atomically(path, |file| {
        file.write_all(&text).map_err(InferError::io(path, "write it"))
    })
}

/// The contents of a JSON file.
///
/// # Errors
/// The file cannot be read or is not JSON.
pub(crate) fn read_json(path: &Path) -> Result<Value, InferError> {
    let text = std::fs::read_to_string(path).map_err(InferError::io(path, "read it"))?;
    serde_json::from_str(&text).map_err(|error| InferError::at(path, error))
}
