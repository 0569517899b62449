//! What can go wrong with a run, by whose fault it is.

use vlm_config::ConfigError;
use vlm_data::{DataError, has_disk_failure};
use vlm_infer::{ErrorKind, InferError};
use vlm_model::{ModelError, ShapeError};

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
    /// A model that the run starts from, or its evaluation.
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
    /// Whether the user asked for something that cannot be, in a setting or a file that it names.
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::Infer(error) => error.kind() == ErrorKind::Usage,
            Self::Failed(_) | Self::Data(_) | Self::Model(_) => false,
        }
    }

    /// What the data, which was in order when the run began, could not do in its middle: a file that
    /// cannot be read or written then is no wrong request.
    pub(crate) fn midway(error: DataError) -> Self {
        match error {
            DataError::Io { .. } => Self::Failed(error.to_string()),
            other => Self::Data(other),
        }
    }

    /// Something that the user named cannot be used, as `told` says: a wrong request, unless a disk
    /// failed or is full, which `error` or one of its causes then says.
    pub fn unusable(told: String, error: &(dyn std::error::Error + 'static)) -> Self {
        if has_disk_failure(error) {
            return Self::Failed(told);
        }
        Self::Usage(told)
    }

    /// The same with what was being done, where libtorch failed at it: its own words do not say.
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
