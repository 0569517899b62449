//! What can be wrong with a weight file, or between it and a model.

use std::path::{Path, PathBuf};

use super::LoadReport;

/// An error of reading, writing or loading weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// On which file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not what it claims to be, or holds what is not read from strangers.
    #[error("{}: {message}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What was expected, what was found, and what to do about it.
        message: String,
    },
    /// A name that the file does not have.
    #[error("{}: there is no tensor {name:?}", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// The file does not fit the model; nothing was loaded.
    #[error("{} does not fit the model:{report}", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// What is missing or has another shape.
        report: Box<LoadReport>,
    },
    /// A tensor with numbers that are infinite or not numbers; a model that starts from it computes
    /// nothing.
    #[error(
        "{}: tensor {name:?} is not finite: {count} of its {numel} numbers are infinite or not \
         numbers, the first at index {first:?}; the file was saved by a run that diverged, or is \
         damaged: take an earlier one",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// How many numbers are not finite.
        count: i64,
        /// Of how many.
        numel: i64,
        /// Index of the first, a number a dimension.
        first: Vec<i64>,
    },
    /// libtorch failed on a tensor.
    #[error("tensor {name:?}: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// libtorch's words.
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

/// Why a part of a file is refused, before anybody says which file it is.
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
