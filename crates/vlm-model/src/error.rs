//! Errors of building and running a model.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The configuration of a model cannot be read or used.
    #[error(transparent)]
    Shapes(#[from] vlm_shapes::ShapeError),
    /// Settings cannot be used, or weights do not fit their configuration.
    #[error("{0}")]
    Config(String),
    /// The parts of a batch do not fit each other or the model.
    #[error("{0}")]
    Shape(String),
    /// An operation of libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
