//! Reads the JSON files that come with a tokenizer.

use std::path::Path;

use serde_json::Value;

use crate::error::DataError;

/// The content of the JSON file at `path`, which belongs to a tokenizer.
///
/// # Errors
/// A file that cannot be read or is not JSON.
pub(crate) fn read_json(path: &Path) -> Result<Value, DataError> {
    let text = std::fs::read_to_string(path).map_err(DataError::io(path, "read the tokenizer"))?;
    serde_json::from_str(&text).map_err(|e| DataError::content(path, format!("not JSON: {e}")))
}

/// As [`read_json`]; null when there is no such file.
///
/// # Errors
/// As [`read_json`].
pub(crate) fn read_json_if_there(path: &Path) -> Result<Value, DataError> {
    if path.is_file() { read_json(path) } else { Ok(Value::Null) }
}
