//! The types of values that only settings have.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vlm_shapes::Dtype;

/// How the losses of tokens are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossAverage {
    /// Mean over the supervised tokens of each micro-batch, then over the micro-batches of an
    /// update, as in the reference.
    Batch,
    /// Mean over all supervised tokens of an update.
    Token,
}

/// The schedule of the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// A cosine from 1.1 to 0.1 times the rate: MiniMind-V of April 2025.
    Reference,
    /// A cosine from the rate to `min_lr_ratio` times the rate.
    Cosine,
    /// The cosine of current MiniMind-V: [`Self::Cosine`], but one step ahead, so that the last step
    /// has `min_lr_ratio` times the rate.
    #[serde(rename = "minimind-3v")]
    MiniMind3v,
    /// The constant rate, then a linear decay to `min_lr_ratio` times the rate at the end.
    Wsd,
    /// The constant rate.
    Constant,
    /// A linear decay from the rate to `min_lr_ratio` times the rate.
    Linear,
}

/// What happens when a checkpoint cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSaveError {
    /// The run ends with an error.
    Stop,
    /// The run continues with a warning. It ends with an error if its last checkpoint cannot be
    /// written.
    Continue,
}

/// A duration in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub u64);

/// A choice of the [`Dtype`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// The type in which the matrix products of the run are fastest, float32 or bfloat16.
    Auto,
    /// [`Dtype::Float32`].
    Float32,
    /// [`Dtype::Bfloat16`].
    Bfloat16,
    /// [`Dtype::Float16`].
    Float16,
}

impl DtypeChoice {
    /// The type, unless it is to be measured.
    pub fn fixed(self) -> Option<Dtype> {
        match self {
            Self::Auto => None,
            Self::Float32 => Some(Dtype::Float32),
            Self::Bfloat16 => Some(Dtype::Bfloat16),
            Self::Float16 => Some(Dtype::Float16),
        }
    }
}

impl From<Dtype> for DtypeChoice {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::Float32,
            Dtype::Bfloat16 => Self::Bfloat16,
            Dtype::Float16 => Self::Float16,
        }
    }
}

/// The checkpoint to continue from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum Resume {
    /// The newest healthy checkpoint in the out-dir.
    Auto,
    /// The checkpoint in this folder.
    Path(PathBuf),
}

impl From<PathBuf> for Resume {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "auto" { Self::Auto } else { Self::Path(path) }
    }
}

impl From<Resume> for PathBuf {
    fn from(resume: Resume) -> Self {
        match resume {
            Resume::Auto => "auto".into(),
            Resume::Path(path) => path,
        }
    }
}
