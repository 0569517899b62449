//! What can go wrong at the border to libtorch.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Which operation failed, on what, and in whose words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch threw; `message` is its text without the C++ backtrace.
    #[error("{operation}: {message}")]
    Torch {
        /// What was asked for.
        operation: &'static str,
        /// libtorch's own words.
        message: String,
    },
    /// A process group failed: a rank died, hangs or does something else.
    #[error("rank {rank} of {world_size}: {operation}: {message}")]
    Group {
        /// The rank that noticed, which need not be the one at fault.
        rank: usize,
        /// How many ranks there are.
        world_size: usize,
        /// What was asked for.
        operation: &'static str,
        /// libtorch's own words.
        message: String,
    },
    /// The arguments do not fit together; nothing was done.
    #[error("{operation}: {message}")]
    Argument {
        /// What was asked for.
        operation: &'static str,
        /// What was expected and what was found.
        message: String,
    },
    /// The operating system refused.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried, a verb.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A shared library is there but cannot be used.
    #[error("load {path}: {message}")]
    Library {
        /// The library's file.
        path: PathBuf,
        /// The loader's words, or what does not match.
        message: String,
    },
}

impl Error {
    pub(crate) fn torch(operation: &'static str, message: &str) -> Self {
        Self::Torch { operation, message: without_backtrace(message) }
    }

    /// The same with the rank on which it happened.
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

/// An error of tch in libtorch's own words, without the frames of its stack.
pub fn plain_message(error: &tch::TchError) -> String {
    without_backtrace(&error.to_string())
}

/// libtorch appends "Exception raised from …" and C++ frames; a reader needs what comes before.
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
    fn message_ends_before_the_frames() {
        let text = "shapes differ\nException raised from f at x.cpp:1\nframe #0: g";
        assert_eq!(without_backtrace(text), "shapes differ");
        assert_eq!(without_backtrace("plain"), "plain");
    }
}
