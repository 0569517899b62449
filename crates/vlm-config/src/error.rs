//! What can be wrong with a configuration.

/// An error of this crate. Messages name settings in backticks with underscores; a command line shows
/// them as its flags.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("{place}: {source}")]
    Io {
        /// The file, as the user named it.
        place: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A setting that is unknown, of the wrong type, out of range, or at odds with another.
    #[error("{0}")]
    Usage(String),
}
