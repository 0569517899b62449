//! What can go wrong with a run, by whose fault it is.

use vlm_data::DataError;
use vlm_model::ModelError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The user asked for something that cannot be: nothing was started.
    #[error("{0}")]
    Usage(String),
    /// Something failed while running.
    #[error("{0}")]
    Failed(String),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model, while running.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<vlm_torch::Error> for TrainError {
    fn from(error: vlm_torch::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl TrainError {
    /// A failure that names the file it happened at.
    pub(crate) fn at(path: &std::path::Path, error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{}: {error}", path.display()))
    }
}
