//! Shapes of the models, as their configuration files write them. No tensors here.

mod detect;
mod hugging_face;
mod keys;
mod lm;
mod lm_json;
mod projector;
mod rope;
mod vision;

use std::path::Path;

pub use detect::Disagreement;
pub use lm::{LmConfig, LmFamily, MoeConfig};
pub use projector::{ProjectorConfig, ProjectorKind};
pub use rope::{RopeScaling, Yarn};
pub use vision::{VisionConfig, VisionFamily};

use crate::ModelError;

/// Reads a JSON file into a value.
fn read_json(path: &Path) -> Result<serde_json::Value, ModelError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|e| ModelError::Config(format!("{}: {e}", path.display())))
}

/// Puts the file's name before what is wrong in it.
fn in_file(path: &Path) -> impl Fn(ModelError) -> ModelError {
    move |error| match error {
        ModelError::Io { .. } => error,
        other => ModelError::Config(format!("{}: {other}", path.display())),
    }
}
