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
    /// What the data, which was in order when the run began, could not do in its middle: a file that
    /// cannot be read or written then is no wrong request.
    pub(crate) fn midway(error: DataError) -> Self {
        match error {
            DataError::Io { .. } => Self::Failed(error.to_string()),
            other => Self::Data(other),
        }
    }

    /// A failure that names the file it happened at.
    pub(crate) fn at(path: &std::path::Path, error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_fails_in_the_middle_of_a_run_is_a_failure_and_no_wrong_request() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("rows.jsonl");
        let error = vlm_data::open_source(&missing, None).err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, DataError::Io { .. }), "{text}");
        match TrainError::midway(error) {
            TrainError::Failed(told) => assert_eq!(told, text),
            other => panic!("{other:?}"),
        }
        let settings = TrainError::midway(DataError::Settings("no".into()));
        assert!(matches!(settings, TrainError::Data(_)));
    }
}
