//! What ends a run because of its data. A row that is merely unusable is a
//! [`Reject`](crate::Reject) instead: it is set aside and the run goes on.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be opened, read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase: "read the file".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file was read, and what it holds cannot be used.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// What was expected, what was found and what to do about it.
        problem: String,
    },
    /// Settings that contradict each other.
    #[error("{0}")]
    Settings(String),
    /// The system started no thread.
    #[error("cannot start threads: {source}; allow this user more processes, or use fewer workers")]
    Threads {
        /// The system's answer.
        source: std::io::Error,
    },
    /// A defect of this program.
    #[error("internal error: {0}; please report it")]
    Internal(String),
    /// Loading a row ended in a panic: a defect of the program, not of the data.
    #[error(
        "the loader failed at {location}: {message}; this is a defect of the program: please \
         report it with this row"
    )]
    WorkerPanic {
        /// The row, as [`RowSource::locate`](crate::RowSource::locate) names it.
        location: String,
        /// What the panic said.
        message: String,
    },
    /// A disk, or what connects it, failed while a row was read.
    #[error(
        "{location}: {source}. The disk or the connection to it failed and not the row, which is \
         not set aside: once it can be read, start the same command again (training with --resume \
         auto), and it goes on"
    )]
    Row {
        /// The row, as [`RowSource::locate`](crate::RowSource::locate) names it.
        location: String,
        /// The file, what was tried, the system's answer.
        source: Box<DataError>,
    },
    /// So many rows were set aside that the data or the settings must be wrong.
    #[error("{0}")]
    TooManyRejected(String),
}

impl DataError {
    /// Whether a disk, or the connection to it, failed or is full: nothing that the user asked for is
    /// wrong.
    pub fn is_disk_failure(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_disk_failure(source),
            Self::Row { .. } => true,
            _ => false,
        }
    }

    /// For `map_err`: a system error at `path` while doing `action`.
    pub(crate) fn io(
        path: &Path,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> DataError + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }

    /// Unusable content of the file at `path`.
    pub(crate) fn content(path: &Path, problem: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), problem: problem.into() }
    }
}

/// Whether the system says that a disk, or the connection to it, failed or is full, and not that there
/// is nothing to be read or written by this name or user.
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
    // What is not the system's answer is about content: an end too early, damaged compression.
    error.raw_os_error().is_some_and(|code| code != TOO_MANY_LINKS) && !is_of_name
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind, Read};

    use super::*;
    use crate::row_error::failing_file;

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
