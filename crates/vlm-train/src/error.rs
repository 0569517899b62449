//! The error type of this crate. Its variants separate errors of the user, the data and the system.

use vlm_config::ConfigError;
use vlm_data::{DataError, has_disk_failure};
use vlm_infer::{ErrorKind, InferError};
use vlm_model::{ModelError, ShapeError};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting, or a file that a setting names, cannot be used. The training was not started.
    #[error("{0}")]
    Usage(String),
    /// A failure during the run.
    #[error("{0}")]
    Failed(String),
    /// An error of the data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An error of the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error while the model was loaded or evaluated.
    #[error(transparent)]
    Infer(#[from] InferError),
}

impl From<ConfigError> for TrainError {
    fn from(error: ConfigError) -> Self {
        Self::unusable(error.to_string(), &error)
    }
}

impl From<ShapeError> for TrainError {
    fn from(error: ShapeError) -> Self {
        Self::Model(error.into())
    }
}

impl From<vlm_torch::Error> for TrainError {
    fn from(error: vlm_torch::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl TrainError {
    /// Whether a setting, or a file that a setting names, cannot be used.
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::Infer(error) => error.kind() == ErrorKind::Usage,
            Self::Failed(_) | Self::Data(_) | Self::Model(_) => false,
        }
    }

    /// Converts an error of the data that occurs after the start of the run: a file that can no
    /// longer be read or written is a failure, not a usage error.
    pub(crate) fn midway(error: DataError) -> Self {
        match error {
            DataError::Io { .. } => Self::Failed(error.to_string()),
            other => Self::Data(other),
        }
    }

    /// The error for a setting or file that cannot be used: a usage error with the text `message`,
    /// or a failure if `error` or one of its sources is a failing or full disk.
    pub fn unusable(message: String, error: &(dyn std::error::Error + 'static)) -> Self {
        if has_disk_failure(error) {
            return Self::Failed(message);
        }
        Self::Usage(message)
    }

    /// Prefixes an error of libtorch with `operation`, which the message of libtorch does not name.
    /// Other errors are returned unchanged.
    pub(crate) fn during(self, operation: &str) -> Self {
        match self {
            Self::Model(error @ ModelError::Torch(_))
            | Self::Infer(InferError::Model(error @ ModelError::Torch(_))) => {
                Self::Failed(format!("{operation}: {error}"))
            }
            other => other,
        }
    }

    /// A failure with the path of the file in its message.
    pub(crate) fn at(path: &std::path::Path, error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vlm_model::weights::WeightsError;

    #[test]
    fn a_failing_disk_is_a_failure_and_a_missing_file_a_usage_error() {
        let error = |code: i32| {
            let source = std::io::Error::from_raw_os_error(code);
            let error = WeightsError::Io { path: "lm.pth".into(), source };
            TrainError::unusable(error.to_string(), &error)
        };
        assert!(matches!(error(5), TrainError::Failed(_)), "EIO");
        assert!(matches!(error(2), TrainError::Usage(_)), "ENOENT");
    }

    #[test]
    fn a_file_that_cannot_be_read_during_a_run_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("rows.jsonl");
        let error = vlm_data::open_source(&missing, None).err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, DataError::Io { .. }), "{text}");
        match TrainError::midway(error) {
            TrainError::Failed(message) => assert_eq!(message, text),
            other => panic!("{other:?}"),
        }
        let settings = TrainError::midway(DataError::Settings("no".into()));
        assert!(matches!(settings, TrainError::Data(_)));
    }
}
