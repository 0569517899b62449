//! Reads a `config.json` and adds the file's name to errors.

use std::path::Path;

use serde_json::Value;

use crate::ShapeError;

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, ShapeError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ShapeError::Io { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|e| ShapeError::Config(format!("{}: {e}", path.display())))
}

/// Returns a function that puts the file's name in front of an error about its content.
pub(crate) fn in_file(path: &Path) -> impl Fn(ShapeError) -> ShapeError {
    move |error| match error {
        ShapeError::Io { .. } => error,
        other => ShapeError::Config(format!("{}: {other}", path.display())),
    }
}
