//! The reason why a checkpoint cannot be loaded.

use std::io;
use std::path::Path;

use vlm_data::is_disk_failure;

use crate::TrainError;

/// The reason why a checkpoint cannot be loaded. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder does not exist.
    #[error("{0}; expected a checkpoint folder")]
    Missing(String),
    /// A file is missing, was changed or is damaged.
    #[error("{0}")]
    Damaged(String),
    /// The checkpoint has a format that this version of the program does not read.
    #[error("{0}")]
    OtherVersion(String),
    /// The disk, or the connection to it, failed.
    #[error("{0}")]
    Disk(String),
}

impl LoadError {
    /// The error for `path`, from that of the system.
    pub(super) fn from_io(path: &Path, error: io::Error) -> Self {
        let text = format!("{}: {error}", path.display());
        if is_disk_failure(&error) { Self::Disk(text) } else { Self::Damaged(text) }
    }
}

impl From<LoadError> for TrainError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Missing(_) | LoadError::OtherVersion(_) => Self::Usage(error.to_string()),
            LoadError::Damaged(_) | LoadError::Disk(_) => Self::Failed(error.to_string()),
        }
    }
}
