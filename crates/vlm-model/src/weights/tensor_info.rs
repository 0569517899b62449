//! The description of a tensor in a weights file.

use tch::Kind;

/// The description of one tensor in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Full dotted name.
    pub name: String,
    /// Size of each dimension.
    pub shape: Vec<i64>,
    /// Dtype in the file.
    pub kind: Kind,
    /// If this tensor is tied to an earlier one, the name of that one. Known for a `.pth`, and for
    /// a `.safetensors` that this crate wrote; the format itself cannot express it.
    pub shared_with: Option<String>,
}
