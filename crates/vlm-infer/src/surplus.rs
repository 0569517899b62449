//! Tensors of a file that the model does not have.

use std::path::Path;

use vlm_model::part_files::listed;

use crate::InferError;

/// Returns an error if the file has tensors that its own model computes with, but that this model
/// does not have.
pub(crate) fn refuse_surplus(
    path: &Path,
    surplus: &[String],
    is_computed_from: impl Fn(&str) -> bool,
) -> Result<(), InferError> {
    let names: Vec<&str> =
        surplus.iter().map(String::as_str).filter(|name| is_computed_from(name)).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(InferError::at(
        path,
        format!(
            "{} of its tensors are not part of the model that config.json describes: {}; use the \
             config.json that belongs to these weights, or other weights",
            names.len(),
            listed(names.into_iter())
        ),
    ))
}

/// Warns of tensors that nothing is computed from.
pub(crate) fn warn_of_surplus(path: &Path, names: &[String]) {
    if !names.is_empty() {
        tracing::warn!(
            "{}: {} tensors are not part of this model and were ignored: {}",
            path.display(),
            names.len(),
            listed(names.iter().map(String::as_str))
        );
    }
}
