//! JSON files that appear whole or not at all.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::InferError;

/// Writes a value as indented JSON. A file that is there stays until the new one is whole.
///
/// # Errors
/// The operating system's, with the path.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), InferError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| InferError::at(path, error))?;
    text.push(b'\n');
    vlm_torch::write_atomically(path, |file| {
        file.write_all(&text).map_err(InferError::io(path, "write it"))
    })
}
