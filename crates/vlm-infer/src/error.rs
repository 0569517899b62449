//! The error type of this crate.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use vlm_data::{DataError, Reject, has_disk_failure};
use vlm_model::weights::WeightsError;
use vlm_model::{ModelError, ShapeError};

type Source = Box<dyn Error + Send + Sync>;

/// An error of this crate. [`InferError::kind`] says who can act on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// A setting, or a file that a setting names, cannot be used.
    #[error("{message}")]
    Unusable {
        /// Name of the setting in [`LoadOptions`](crate::LoadOptions) or
        /// [`ModelFiles`](crate::ModelFiles), if it is a single one.
        setting: Option<&'static str>,
        /// The setting or file, what was expected, what was found, and what to do.
        message: String,
        /// The underlying error, if any.
        source: Option<Source>,
    },
    /// A file cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// The operation that failed, as a verb phrase such as "read it".
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// A conversation or one of its images cannot be used as a prompt.
    #[error("this cannot be used as a prompt: {0}")]
    Prompt(#[from] Reject),
    /// A row was rejected where all rows are needed.
    #[error("{location}: {reject}")]
    Row {
        /// Location of the row, such as `captions.jsonl:17`.
        location: String,
        /// Why the row was rejected.
        reject: Reject,
    },
    /// An error of the dataset.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An input does not fit the model, or an operation of libtorch failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Weights could not be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] vlm_torch::Error),
}

/// Who can act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller: a setting, or a file that a setting names, cannot be used.
    Usage,
    /// The author of the dataset: too many rows were rejected.
    Data,
    /// The operator of the machine: a disk is full or fails.
    Io,
    /// The developers: an error of this program or of libtorch.
    Internal,
}

impl From<ShapeError> for InferError {
    fn from(error: ShapeError) -> Self {
        Self::Model(error.into())
    }
}

impl InferError {
    /// Who can act on this error.
    pub fn kind(&self) -> ErrorKind {
        // A full or failing disk is never a usage error, even for a file that the user named.
        if has_disk_failure(self) {
            return ErrorKind::Io;
        }
        match self {
            Self::Unusable { .. } | Self::Prompt(_) => ErrorKind::Usage,
            Self::Io { .. } => ErrorKind::Io,
            Self::Row { .. } | Self::Data(DataError::TooManyRejected { .. }) => ErrorKind::Data,
            Self::Data(DataError::Row { .. }) => ErrorKind::Io,
            Self::Data(DataError::WorkerPanic { .. }) => ErrorKind::Internal,
            Self::Data(_) => ErrorKind::Usage,
            Self::Model(ModelError::Config(_) | ModelError::Shapes(_)) => ErrorKind::Usage,
            Self::Model(_) | Self::Weights(_) | Self::Torch(_) => ErrorKind::Internal,
        }
    }

    /// A usage error with the text `message`.
    pub(crate) fn unusable(message: impl Into<String>) -> Self {
        Self::Unusable { setting: None, message: message.into(), source: None }
    }

    /// A usage error about the setting `name`, with the text `message`.
    pub(crate) fn setting(name: &'static str, message: impl Into<String>) -> Self {
        Self::Unusable { setting: Some(name), message: message.into(), source: None }
    }

    /// An error about a file that a setting names. The text of `source` names the file.
    pub(crate) fn file(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Unusable { setting: None, message: source.to_string(), source: Some(source.into()) }
    }

    /// An error about the file at `path`, for a `source` whose text does not name the file.
    pub(crate) fn at(path: &Path, source: impl Into<Source>) -> Self {
        let source = source.into();
        let message = format!("{}: {source}", path.display());
        Self::Unusable { setting: None, message, source: Some(source) }
    }

    /// For `map_err`: converts an error of the system at `path`. `action` is a verb phrase.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_disk_is_an_io_error_and_a_missing_file_a_usage_error() {
        let kind = |code: i32| {
            let source = io::Error::from_raw_os_error(code);
            InferError::file(WeightsError::Io { path: "lm.pth".into(), source }).kind()
        };
        assert_eq!(kind(5), ErrorKind::Io, "EIO");
        assert_eq!(kind(2), ErrorKind::Usage, "ENOENT");
    }
}
