//! What a check found.

use std::fmt;
use std::path::PathBuf;

/// A broken house rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// Relative to the root of the checkout.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// What was found, and the rule.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}
