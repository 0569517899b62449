//! Settings of a model's shape and precision that a user may give before any file is read.

use serde::{Deserialize, Serialize};

/// The parts of the language model's shape that a user may set. A field that is `None` is read from
/// `config.json` beside the weights, or has its default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapeRequest {
    /// Hidden size.
    pub dim: Option<i64>,
    /// Number of blocks.
    pub n_layers: Option<i64>,
    /// Number of query heads.
    pub n_heads: Option<i64>,
    /// Number of key and value heads.
    pub n_kv_heads: Option<i64>,
    /// Dropout probability.
    pub dropout: Option<f64>,
    /// Whether each block has a mixture of experts instead of one feed-forward layer.
    pub use_moe: Option<bool>,
}

/// Data type of the matrix products in the forward pass. Weights, optimizer, norms and loss stay in
/// float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Float32, without autocast.
    Float32,
    /// Autocast to bfloat16, which needs no loss scaling.
    Bfloat16,
    /// Autocast to float16, with dynamic loss scaling.
    Float16,
}
