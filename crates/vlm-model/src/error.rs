//! What can go wrong with a model.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A configuration of a model that cannot be read or used.
    #[error(transparent)]
    Shapes(#[from] vlm_shapes::ShapeError),
    /// Settings that cannot be used, or weights that do not fit their configuration.
    #[error("{0}")]
    Config(String),
    /// A batch whose parts do not fit each other or the model.
    #[error("{0}")]
    Shape(String),
    /// An operation of libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
