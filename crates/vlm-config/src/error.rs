//! Errors of configurations.

/// An error of this crate. Messages name settings in backticks with underscores; command lines
/// replace them by flags (see [`crate::with_flags`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{place}: {source}")]
    Io {
        /// The path of the file, as the user gave it.
        place: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A setting is unknown, of the wrong type, out of range, or contradicts another setting.
    #[error("{0}")]
    Usage(String),
}
