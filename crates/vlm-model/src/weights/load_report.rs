//! The differences between a weights file and the model that it is loaded into.

use std::fmt;

use tch::Kind;

/// A tensor whose shape in the file differs from the model's.
#[derive(Debug, Clone, PartialEq)]
pub struct Misshapen {
    /// The tensor.
    pub name: String,
    /// The model's shape.
    pub expected: Vec<i64>,
    /// The file's shape.
    pub found: Vec<i64>,
}

/// The differences between a file and a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadReport {
    /// Number of parameters that were loaded.
    pub num_loaded: usize,
    /// Names that are in the model, but not in the file. After a successful load, these are names
    /// that were allowed to be missing.
    pub missing: Vec<String>,
    /// Names that are in the file, but not in the model, and that are not tied to a loaded tensor:
    /// worth a warning.
    pub surplus: Vec<String>,
    /// Tensors with different shapes; empty after a successful load.
    pub misshapen: Vec<Misshapen>,
    /// Parameters that were loaded from another dtype: `(name, dtype in the file)`.
    pub converted: Vec<(String, Kind)>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Misshapen { name, expected, found } in &self.misshapen {
            write!(f, "\n  {name}: the model has shape {expected:?}, the file {found:?}")?;
        }
        for name in &self.missing {
            write!(f, "\n  {name}: not in the file")?;
        }
        if !self.surplus.is_empty() {
            write!(f, "\n  only in the file: {}", self.surplus.join(", "))?;
        }
        Ok(())
    }
}
