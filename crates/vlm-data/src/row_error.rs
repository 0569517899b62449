//! Errors of reading a row: either the row is at fault, or the disk that it is on.

use std::io::Error;
use std::path::Path;
use std::sync::Arc;

use crate::error::{DataError, is_disk_failure};
use crate::reject::Reject;

/// Why a row cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The row is at fault: it is rejected, and the work continues.
    #[error(transparent)]
    Reject(#[from] Reject),
    /// A disk or the connection to it failed, and nothing is known about the row: the work ends.
    #[error(transparent)]
    Fatal(#[from] DataError),
}

impl RowError {
    /// The reason why the row is rejected, if the row is at fault.
    pub fn reject(self) -> Option<Reject> {
        match self {
            Self::Reject(reject) => Some(reject),
            Self::Fatal(_) => None,
        }
    }

    /// Classifies a system error during `action` on the file at `path`; `reject` gives the reason
    /// if the row is at fault.
    pub(crate) fn from_io(
        path: &Path,
        action: &'static str,
        error: Error,
        reject: impl FnOnce(String) -> Reject,
    ) -> Self {
        if is_disk_failure(&error) {
            Self::Fatal(DataError::io(path, action)(error))
        } else {
            Self::Reject(reject(error.to_string()))
        }
    }

    /// Why the row at `location` is rejected.
    ///
    /// # Errors
    /// A fatal error, with the location of the row.
    pub fn at(self, location: String) -> Result<Reject, DataError> {
        match self {
            Self::Reject(reject) => Ok(reject),
            Self::Fatal(source @ DataError::Io { .. }) => {
                Err(DataError::Row { location, source: Box::new(source) })
            }
            Self::Fatal(other) => Err(other),
        }
    }
}

/// Why a part of a file cannot be read. It can be stored and returned several times.
#[derive(Debug, Clone)]
pub(crate) enum ReadError {
    /// The content is not as expected.
    Content(String),
    /// The error of the system.
    System(Arc<Error>),
}

impl ReadError {
    /// The error for the whole file at `path`.
    pub(crate) fn into_data_error(self, path: &Path) -> DataError {
        match self {
            Self::Content(problem) => DataError::content(path, problem),
            Self::System(error) => DataError::io(path, "read the rows")(same(&error)),
        }
    }

    /// The error for a row in the file at `path`; `reject` gives the reason if the content is
    /// broken.
    pub(crate) fn into_row_error(
        self,
        path: &Path,
        reject: impl FnOnce(String) -> Reject,
    ) -> RowError {
        match self {
            Self::Content(problem) => RowError::Reject(reject(problem)),
            Self::System(error) => {
                RowError::Fatal(DataError::io(path, "read the rows")(same(&error)))
            }
        }
    }
}

/// A copy of a system error.
fn same(error: &Error) -> Error {
    match error.raw_os_error() {
        Some(code) => Error::from_raw_os_error(code),
        None => Error::new(error.kind(), error.to_string()),
    }
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        if is_disk_failure(&error) {
            Self::System(Arc::new(error))
        } else {
            Self::Content(error.to_string())
        }
    }
}

impl From<String> for ReadError {
    fn from(problem: String) -> Self {
        Self::Content(problem)
    }
}

impl From<&str> for ReadError {
    fn from(problem: &str) -> Self {
        Self::Content(problem.to_owned())
    }
}

/// A file that can be opened but not read, as on a failing disk: the first page of a process's
/// memory is not mapped.
#[cfg(test)]
pub(crate) fn failing_file() -> std::fs::File {
    std::fs::File::open("/proc/self/mem").unwrap()
}
