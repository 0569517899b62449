//! Errors of this crate, by kind.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use vlm_data::{DataError, Reject, has_disk_failure};
use vlm_model::weights::WeightsError;
use vlm_model::{ModelError, ShapeError};

type Source = Box<dyn Error + Send + Sync>;

/// An error of this crate. [`InferError::kind`] tells whose it is to act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// A setting, or a file that a setting names, cannot be used.
    #[error("{message}")]
    Unusable {
        /// The setting at fault, by its name in [`LoadOptions`](crate::LoadOptions) or
        /// [`ModelFiles`](crate::ModelFiles), where there is a single one.
        setting: Option<&'static str>,
        /// The setting or file, what was expected, what was found, and what to do.
        message: String,
        /// The error of the layer below, if any.
        source: Option<Source>,
    },
    /// The operating system refused to read or write a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A conversation or one of its images cannot be used as a prompt.
    #[error("this cannot be used as a prompt: {0}")]
    Prompt(#[from] Reject),
    /// A row cannot be used, and every row was asked for.
    #[error("{location}: {reject}")]
    Row {
        /// Where the row stands.
        location: String,
        /// Why it cannot be used.
        reject: Reject,
    },
    /// The rows of a data set.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A model that does not fit its input, or an operation of libtorch that failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Weights could not be read or written after they had been checked.
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
    /// Whoever made the data: too many rows cannot be used.
    Data,
    /// Whoever runs the machine: a disk is full or fails.
    Io,
    /// This program, or libtorch.
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
        // A full or failing disk is not a usage error, also where it affects a file of the user.
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

    /// A request that cannot be met, as `message` says.
    pub(crate) fn unusable(message: impl Into<String>) -> Self {
        Self::Unusable { setting: None, message: message.into(), source: None }
    }

    /// The same, with the setting at fault.
    pub(crate) fn setting(name: &'static str, message: impl Into<String>) -> Self {
        Self::Unusable { setting: Some(name), message: message.into(), source: None }
    }

    /// A file that a setting names cannot be used for the reason that `source` gives.
    pub(crate) fn file(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Unusable { setting: None, message: source.to_string(), source: Some(source.into()) }
    }

    /// The same, where `source` does not name the file.
    pub(crate) fn at(path: &Path, source: impl Into<Source>) -> Self {
        let source = source.into();
        let message = format!("{}: {source}", path.display());
        Self::Unusable { setting: None, message, source: Some(source) }
    }

    /// For `map_err`: the system's answer to `action` at `path`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_disk_under_a_file_that_a_setting_names_is_no_usage_error() {
        let kind = |code: i32| {
            let source = io::Error::from_raw_os_error(code);
            InferError::file(WeightsError::Io { path: "lm.pth".into(), source }).kind()
        };
        assert_eq!(kind(5), ErrorKind::Io, "EIO");
        assert_eq!(kind(2), ErrorKind::Usage, "ENOENT");
    }
}
