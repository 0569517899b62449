//! Why a row cannot be had: by its own fault, or by that of what it lies on.

use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use crate::error::DataError;
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

/// Whether the system says that a disk, or the connection to it, failed or is full, and not that there
/// is nothing to be read or written by this name or user.
pub fn is_disk_failure(error: &Error) -> bool {
    /// ELOOP, which has no stable kind yet.
    const TOO_MANY_LINKS: i32 = if cfg!(target_os = "linux") { 40 } else { 62 };
    let is_of_name = matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::AlreadyExists
            | ErrorKind::DirectoryNotEmpty
            | ErrorKind::BrokenPipe
    );
    // What is not the system's answer is about content: an end too early, damaged compression.
    error.raw_os_error().is_some_and(|code| code != TOO_MANY_LINKS) && !is_of_name
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn failing_disks_are_told_from_files_that_are_not_there_or_not_to_be_read() {
        let failed = failing_file().read(&mut [0; 8]).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(5), "EIO");
        assert!(is_disk_failure(&failed));
        // ESTALE, EMFILE, ETIMEDOUT: a network disk that went away, a limit of this process.
        for code in [116, 24, 110] {
            assert!(is_disk_failure(&Error::from_raw_os_error(code)), "{code}");
        }
        // ENOENT, EACCES, EPERM, ENOTDIR, EISDIR, ENAMETOOLONG, ELOOP.
        for code in [2, 13, 1, 20, 21, 36, 40] {
            assert!(!is_disk_failure(&Error::from_raw_os_error(code)), "{code}");
        }
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::InvalidData] {
            assert!(!is_disk_failure(&Error::from(kind)));
        }
    }
}
