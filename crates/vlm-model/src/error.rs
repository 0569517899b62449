//! What can go wrong with a model.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A configuration that makes no model.
    #[error("{0}")]
    Config(String),
    /// A batch whose parts do not fit each other or the model.
    #[error("{0}")]
    Shape(String),
    /// An operation of libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
