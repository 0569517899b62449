//! Errors of writing the demo data set.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// An error in writing the demo data set.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The folder holds something else, which is not replaced.
    #[error("{0} exists and is not a complete demo data set; remove it or choose another folder")]
    Occupied(PathBuf),
    /// The data set was abandoned because another image could not be written.
    #[error("stopped before the demo data set was complete; no files were kept")]
    Stopped,
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The error for `path`, from that of the system.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> DemoError {
    let path = path.to_path_buf();
    move |source| DemoError::Io { path, source }
}
