//! Errors of the command line itself.

use vlm_data::has_disk_failure;

/// An error of a command that does not come from a library.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The user's request cannot be executed. Nothing was written.
    #[error("{0}")]
    Usage(String),
    /// A failure that the user did not cause.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// The error for a file or value that cannot be used: a usage error with the text `message`, or
    /// a failure if `error` or one of its sources is a failing or full disk.
    pub fn unusable(message: String, error: &(dyn std::error::Error + 'static)) -> Self {
        if has_disk_failure(error) { Self::Failed(message) } else { Self::Usage(message) }
    }
}
