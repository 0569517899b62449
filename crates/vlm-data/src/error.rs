//! The errors of this crate. A row that cannot be used is not such an error but a
//! [`Reject`](crate::Reject): the row is rejected and the run continues.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be opened, read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operation that failed, as a verb phrase: "read the file".
        action: &'static str,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file was read, but its content cannot be used.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// What was expected, what was found and what to do about it.
        problem: String,
    },
    /// Settings contradict each other or are out of range.
    #[error("{0}")]
    Settings(String),
    /// No thread could be started.
    #[error("cannot start threads: {source}; allow this user more processes, or use fewer workers")]
    Threads {
        /// The error of the system.
        source: std::io::Error,
    },
    /// A bug in this program.
    #[error("internal error: {0}; please report it")]
    Internal(String),
    /// Loading a row panicked: a bug in this program, not a fault of the data.
    #[error("internal error while loading {location}: {message}; please report it with this row")]
    WorkerPanic {
        /// The row, as [`RowSource::locate`](crate::RowSource::locate) names it.
        location: String,
        /// The message of the panic.
        message: String,
    },
    /// A disk, or what connects it, failed while a row was read.
    #[error(
        "{location}: {source}. The disk or the connection to it failed; the row is not rejected. \
         Once the file can be read, run the same command again to continue (training with `resume` \
         auto)"
    )]
    Row {
        /// The row, as [`RowSource::locate`](crate::RowSource::locate) names it.
        location: String,
        /// The file, the operation and the system's error.
        source: Box<DataError>,
    },
    /// So many rows were rejected that the data or the settings must be wrong.
    #[error("{0}")]
    TooManyRejected(String),
}

impl DataError {
    /// Whether a disk or the connection to it failed or is full, so that the user's request is not
    /// at fault.
    pub fn is_disk_failure(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_disk_failure(source),
            Self::Row { .. } => true,
            _ => false,
        }
    }

    /// For `map_err`: makes an error of a system error at `path` during `action`.
    pub(crate) fn io(
        path: &Path,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> DataError + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }

    /// An error for unusable content of the file at `path`.
    pub(crate) fn content(path: &Path, problem: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), problem: problem.into() }
    }
}

/// Whether an error or one of its causes is a disk that fails or is full, see [`is_disk_failure`].
pub fn has_disk_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.downcast_ref().is_some_and(is_disk_failure))
}

/// Whether the system reports that a disk or the connection to it failed or is full, rather than
/// that a file is missing or that the user may not read or write it.
pub fn is_disk_failure(error: &io::Error) -> bool {
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
    // An error without a code of the system is about content: an early end, damaged compression.
    error.raw_os_error().is_some_and(|code| code != TOO_MANY_LINKS) && !is_of_name
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind, Read};

    use super::*;
    use crate::row_error::failing_file;

    #[test]
    fn failing_disks_are_distinguished_from_missing_and_forbidden_files() {
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
