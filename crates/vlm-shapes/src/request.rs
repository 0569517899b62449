//! What a user may ask of a language model's shape and of the arithmetic, before any file is read.

use serde::{Deserialize, Serialize};

/// The parts of the language model's shape that a user may ask for. What is `None` comes from
/// `config.json` beside the weights, or the default.
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
    /// Probability of dropout.
    pub dropout: Option<f64>,
    /// Whether feed-forward layers are a mixture of experts.
    pub use_moe: Option<bool>,
}

/// Type of the forward pass's matrix products. Weights, optimizer, norms and loss stay in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits, no autocast.
    Float32,
    /// Autocast to bfloat16, which needs no loss scaling.
    Bfloat16,
    /// Autocast to float16, with dynamic loss scaling.
    Float16,
}
