//! Errors of weights files and of loading them into a model.

use std::path::{Path, PathBuf};

use super::load_report::LoadReport;

/// An error of reading, writing or loading weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason that the operating system gives.
        source: std::io::Error,
    },
    /// The content of the file is damaged, not safe, or not supported.
    #[error("{}: {message}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What was expected, what was found, and what to do about it.
        message: String,
    },
    /// The file has no tensor of a name.
    #[error("{}: there is no tensor {name:?}", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name that was requested.
        name: String,
    },
    /// The file does not fit the model; nothing was loaded.
    #[error("{} does not fit the model:{report}", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// The tensors that are missing or have another shape.
        report: Box<LoadReport>,
    },
    /// A tensor has elements that are infinite or not a number (NaN).
    #[error(
        "{}: tensor {name:?} is not finite: {count} of its {numel} elements (infinite or NaN), the \
         first at index {first:?}; the file is damaged, or was saved by a run that diverged: \
         use an earlier one",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Number of elements that are not finite.
        count: i64,
        /// Number of all elements.
        numel: i64,
        /// Index of the first element that is not finite, one number per dimension.
        first: Vec<i64>,
    },
    /// libtorch failed on a tensor.
    #[error("tensor {name:?}: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// The error of libtorch.
        source: vlm_torch::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] vlm_torch::Error),
}

impl WeightsError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn tch(name: &str) -> impl FnOnce(tch::TchError) -> Self {
        move |error| Self::Tensor {
            name: name.to_owned(),
            source: vlm_torch::Error::Torch { operation: "read", message: error.to_string() },
        }
    }
}

/// The reason why a file is refused, without the file's name.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal(pub String);

impl Refusal {
    pub fn in_file(self, path: &Path) -> WeightsError {
        WeightsError::Refused { path: path.to_owned(), message: self.0 }
    }
}

/// `Err(Refusal(format!(…)))`
macro_rules! refuse {
    ($($text:tt)*) => { Err($crate::weights::error::Refusal(format!($($text)*))) };
}
pub(super) use refuse;
