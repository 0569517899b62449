//! Why a row cannot be had: by its own fault, or by that of what it lies on.

use std::io::Error;
use std::path::Path;
use std::sync::Arc;

use crate::error::{DataError, is_disk_failure};
use crate::reject::Reject;

/// Why a row cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The row is at fault: it is set aside, and the work goes on.
    #[error(transparent)]
    Reject(#[from] Reject),
    /// A disk or the connection to it is, and nothing is known of the row: the work ends.
    #[error(transparent)]
    Fatal(#[from] DataError),
}

impl RowError {
    /// The row's fault, where it is the row's.
    pub fn reject(self) -> Option<Reject> {
        match self {
            Self::Reject(reject) => Some(reject),
            Self::Fatal(_) => None,
        }
    }

    /// The system's answer to `action` on the file at `path`, where `reject` says what it would mean
    /// of the row.
    pub(crate) fn of_system(
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

    /// Why the row at `location` is set aside.
    ///
    /// # Errors
    /// The end of the work, with the row's place.
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

/// Why a part of a file cannot be read; may be kept and told again.
#[derive(Debug, Clone)]
pub(crate) enum ReadError {
    /// What it holds is not what it should.
    Content(String),
    /// The system's answer.
    System(Arc<Error>),
}

impl ReadError {
    /// What it means for the whole file at `path`.
    pub(crate) fn of_file(self, path: &Path) -> DataError {
        match self {
            Self::Content(problem) => DataError::content(path, problem),
            Self::System(error) => DataError::io(path, "read the rows")(same(&error)),
        }
    }

    /// What it means for a row in the file at `path`; `reject` says what broken content would.
    pub(crate) fn in_file(self, path: &Path, reject: impl FnOnce(String) -> Reject) -> RowError {
        match self {
            Self::Content(problem) => RowError::Reject(reject(problem)),
            Self::System(error) => {
                RowError::Fatal(DataError::io(path, "read the rows")(same(&error)))
            }
        }
    }
}

/// The system's answer once more.
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

/// A file that can be opened and not be read, as on a failing disk: nothing is mapped at the start
/// of a process's memory.
#[cfg(test)]
pub(crate) fn failing_file() -> std::fs::File {
    std::fs::File::open("/proc/self/mem").unwrap()
}
