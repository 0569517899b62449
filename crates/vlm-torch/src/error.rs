//! Errors of this crate.

use std::path::{Path, PathBuf};

/// The result of the functions of this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate: the operation that failed, and the reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch threw an exception.
    #[error("{operation}: {message}")]
    Torch {
        /// The operation that failed.
        operation: &'static str,
        /// libtorch's message, without the C++ backtrace.
        message: String,
    },
    /// An operation of a process group failed: a rank died, does not respond, or called another
    /// operation.
    #[error("rank {rank} of {world_size}: {operation}: {message}")]
    Group {
        /// The rank that reports the error, which need not be the one that caused it.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// The operation that failed.
        operation: &'static str,
        /// libtorch's message, without the C++ backtrace.
        message: String,
    },
    /// The arguments do not fit together; nothing was changed.
    #[error("{operation}: {message}")]
    Argument {
        /// The operation that failed.
        operation: &'static str,
        /// What was expected and what was found.
        message: String,
    },
    /// A file operation failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// The operation that failed, a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason that the operating system gives.
        source: std::io::Error,
    },
    /// A shared library cannot be used.
    #[error("load {path}: {message}")]
    Library {
        /// The library's file.
        path: PathBuf,
        /// The message of the dynamic loader, or the reason.
        message: String,
    },
}

impl Error {
    pub(crate) fn torch(operation: &'static str, message: &str) -> Self {
        Self::Torch { operation, message: without_backtrace(message) }
    }

    /// Adds the rank to an error of libtorch.
    pub(crate) fn on_rank(self, rank: usize, world_size: usize) -> Self {
        match self {
            Self::Torch { operation, message } => {
                Self::Group { rank, world_size, operation, message }
            }
            other => other,
        }
    }

    pub(crate) fn argument(operation: &'static str, message: impl Into<String>) -> Self {
        Self::Argument { operation, message: message.into() }
    }

    pub(crate) fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }

    pub(crate) fn tch(operation: &'static str, error: &tch::TchError) -> Self {
        Self::torch(operation, &error.to_string())
    }
}

/// The message of an error of tch, without the C++ backtrace.
pub fn plain_message(error: &tch::TchError) -> String {
    without_backtrace(&error.to_string())
}

/// Removes the C++ backtrace, which libtorch appends to its messages.
fn without_backtrace(message: &str) -> String {
    let end = ["Exception raised from", "\nframe #", "C++ CapturedTraceback"]
        .iter()
        .filter_map(|mark| message.find(mark))
        .min()
        .unwrap_or(message.len());
    message[..end].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::without_backtrace;

    #[test]
    fn the_backtrace_is_removed_from_messages() {
        let text = "shapes differ\nException raised from f at x.cpp:1\nframe #0: g";
        assert_eq!(without_backtrace(text), "shapes differ");
        assert_eq!(without_backtrace("plain"), "plain");
    }
}
