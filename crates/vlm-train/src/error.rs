//! The error of this crate. Its variants say whether the user, the data or the system is at fault.

use vlm_config::ConfigError;
use vlm_data::{DataError, has_disk_failure};
use vlm_infer::{ErrorKind, InferError};
use vlm_model::{ModelError, ShapeError};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting or file that cannot be used. Nothing was started.
    #[error("{0}")]
    Usage(String),
    /// Something failed while running.
    #[error("{0}")]
    Failed(String),
    /// An error of the data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An error of the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error while the starting model was loaded, or evaluated.
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

    /// The error of data that could be read when the run started: a file that cannot be read or written
    /// later is a failure, not a usage error.
    pub(crate) fn midway(error: DataError) -> Self {
        match error {
            DataError::Io { .. } => Self::Failed(error.to_string()),
            other => Self::Data(other),
        }
    }

    /// An error about something that the user named and that cannot be used: a usage error with the
    /// text `message`, or a failure when `error` or one of its causes is a failing or full disk.
    pub fn unusable(message: String, error: &(dyn std::error::Error + 'static)) -> Self {
        if has_disk_failure(error) {
            return Self::Failed(message);
        }
        Self::Usage(message)
    }

    /// Adds what was being done to an error of libtorch, whose message does not say it.
    pub(crate) fn during(self, what: &str) -> Self {
        match self {
            Self::Model(error @ ModelError::Torch(_))
            | Self::Infer(InferError::Model(error @ ModelError::Torch(_))) => {
                Self::Failed(format!("{what}: {error}"))
            }
            other => other,
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
    use vlm_model::weights::WeightsError;

    #[test]
    fn a_failing_disk_under_a_file_that_the_user_named_is_a_failure() {
        let error = |code: i32| {
            let source = std::io::Error::from_raw_os_error(code);
            let error = WeightsError::Io { path: "lm.pth".into(), source };
            TrainError::unusable(error.to_string(), &error)
        };
        assert!(matches!(error(5), TrainError::Failed(_)), "EIO");
        assert!(matches!(error(2), TrainError::Usage(_)), "ENOENT");
    }

    #[test]
    fn a_file_that_fails_during_a_run_is_a_failure_and_no_usage_error() {
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
