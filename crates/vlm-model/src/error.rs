//! What can go wrong with a model.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A configuration that makes no model.
    #[error("{0}")]
    Config(String),
    /// A configuration file that cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A batch whose parts do not fit each other or the model.
    #[error("{0}")]
    Shape(String),
    /// An operation of libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
