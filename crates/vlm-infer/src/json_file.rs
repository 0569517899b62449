//! Writes JSON files atomically.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

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
