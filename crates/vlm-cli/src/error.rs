//! Errors of the command line itself.

use vlm_data::has_disk_failure;

/// An error that a command finds, and no library.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The user asked for something that cannot be done; nothing was written.
    #[error("{0}")]
    Usage(String),
    /// Something failed that the user did not cause.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// Something that the user named cannot be used, as `message` says: a usage error, unless
    /// `error` or one of its causes says that a disk failed or is full.
    pub fn unusable(message: String, error: &(dyn std::error::Error + 'static)) -> Self {
        if has_disk_failure(error) { Self::Failed(message) } else { Self::Usage(message) }
    }
}
