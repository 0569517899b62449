//! Shape of the language model. Each family's file form is in `lm_json.rs`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::RopeScaling;
use crate::ShapeError;
use crate::config_file::{in_file, read_json};
use crate::names::LmNames;

/// Which published form a language model has: the names of its tensors and of its configuration,
/// and what differs in the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LmFamily {
    /// MiniMind of April 2025: its own names, rotary embedding on adjacent pairs.
    #[default]
    MiniMind,
    /// MiniMind from late April 2025 to early 2026 (`MiniMind2`): Hugging Face's names, rotary
    /// embedding on halves, several shared experts.
    MiniMind2,
    /// MiniMind's present form (`minimind-3`): Hugging Face's names, rotary embedding on halves,
    /// queries and keys normalised.
    MiniMind3,
    /// LLaMA as Hugging Face writes it (SmolLM2's shape), Qwen2, which adds biases to queries, keys
    /// and values, and Qwen3, which normalises queries and keys.
    Llama,
}

/// Shape of the language model. The fields have the names of MiniMind's `LMConfig`, whatever the
/// family; read and written, it has its family's own form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct LmConfig {
    /// The published form.
    pub family: LmFamily,
    /// Hidden size H.
    pub dim: i64,
    /// Transformer blocks.
    pub n_layers: i64,
    /// Query heads.
    pub n_heads: i64,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: i64,
    /// Width of one attention head; `None`: `dim / n_heads`.
    pub head_dim: Option<i64>,
    /// Whether queries and keys are normalised, head by head.
    pub qk_norm: bool,
    /// Whether the layers of queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the layer behind attention has a bias.
    pub attention_output_bias: bool,
    /// Whether the layers of the feed-forward layer have biases.
    pub mlp_bias: bool,
    /// Rows of the embedding table.
    pub vocab_size: i64,
    /// Whether input and output embeddings are one tensor.
    pub tie_word_embeddings: bool,
    /// Width of the feed-forward layer; `None`: the family's rule.
    pub hidden_dim: Option<i64>,
    /// Rounding of the feed-forward width.
    pub multiple_of: i64,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// How the rotary angles are scaled.
    pub rope_scaling: RopeScaling,
    /// Longest sequence, in tokens.
    pub max_seq_len: i64,
    /// Dropout probability in training, 0 to 1.
    pub dropout: f64,
    /// Dropout probability of attention's weights where it is another than `dropout`.
    pub attention_dropout: Option<f64>,
    /// Mixture of experts instead of one feed-forward layer.
    pub use_moe: bool,
    /// The experts, where there are any.
    pub moe: MoeConfig,
}

/// Shape of a mixture of experts, with the names of MiniMind's `LMConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoeConfig {
    /// Experts that tokens are routed to.
    pub n_routed_experts: i64,
    /// Experts a token is sent to.
    pub num_experts_per_tok: i64,
    /// How many experts there are for all tokens; MiniMind of April 2025 has one, whatever the
    /// number.
    pub n_shared_experts: Option<i64>,
    /// Weight of the auxiliary loss.
    pub aux_loss_alpha: f64,
    /// Whether a token's weights are made to sum to 1.
    pub norm_topk_prob: bool,
}

impl Default for MoeConfig {
    fn default() -> Self {
        Self {
            n_routed_experts: 4,
            num_experts_per_tok: 2,
            n_shared_experts: Some(1),
            aux_loss_alpha: 0.1,
            norm_topk_prob: true,
        }
    }
}

impl Default for LmConfig {
    /// The 26 M form of MiniMind.
    fn default() -> Self {
        Self {
            family: LmFamily::MiniMind,
            dim: 512,
            n_layers: 8,
            n_heads: 8,
            n_kv_heads: 2,
            head_dim: None,
            qk_norm: false,
            qkv_bias: false,
            attention_output_bias: false,
            mlp_bias: false,
            vocab_size: 6400,
            tie_word_embeddings: true,
            hidden_dim: None,
            multiple_of: 64,
            norm_eps: 1e-5,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            max_seq_len: 640,
            dropout: 0.0,
            attention_dropout: None,
            use_moe: false,
            moe: MoeConfig::default(),
        }
    }
}

impl LmFamily {
    /// The shape that the family is best known by: MiniMind's and MiniMind2's 26 M, `minimind-3`'s
    /// 64 M, SmolLM2's 135 M.
    pub fn usual_config(self) -> LmConfig {
        match self {
            Self::MiniMind => LmConfig::default(),
            Self::MiniMind2 => LmConfig { family: self, max_seq_len: 32768, ..LmConfig::default() },
            Self::MiniMind3 => LmConfig {
                family: self,
                dim: 768,
                n_kv_heads: 4,
                qk_norm: true,
                norm_eps: 1e-6,
                max_seq_len: 32768,
                moe: MoeConfig {
                    num_experts_per_tok: 1,
                    n_shared_experts: None,
                    aux_loss_alpha: 5e-4,
                    ..MoeConfig::default()
                },
                ..LmConfig::default()
            },
            Self::Llama => LmConfig {
                family: self,
                dim: 576,
                n_layers: 30,
                n_heads: 9,
                n_kv_heads: 3,
                vocab_size: 49152,
                hidden_dim: Some(1536),
                rope_theta: 1e5,
                max_seq_len: 8192,
                ..LmConfig::default()
            },
        }
    }
}

impl LmConfig {
    /// Reads `config.json` of any of the families. Keys that could change the arithmetic and are not
    /// computed are refused; see [`Self::unread_keys`] for the others.
    ///
    /// # Errors
    /// The file cannot be read, is another model's, or its numbers make no model.
    pub fn from_file(path: &Path) -> Result<Self, ShapeError> {
        let config = Self::from_json(&read_json(path)?).map_err(in_file(path))?;
        config.validate().map_err(in_file(path))?;
        Ok(config)
    }

    /// As [`Self::unread_keys`], of a file.
    ///
    /// # Errors
    /// The file cannot be read; a key that may change the arithmetic.
    pub fn unread_keys_of(path: &Path) -> Result<Vec<String>, ShapeError> {
        Self::unread_keys(&read_json(path)?).map_err(in_file(path))
    }

    /// The names of this model's tensors.
    pub fn names(&self) -> &'static LmNames {
        LmNames::of(self.family)
    }

    /// Width of the feed-forward layer: as given, else LLaMA's rule (section 2.2 of Touvron et al.
    /// 2023) or, in MiniMind's present form, `π · dim`, each rounded up to `multiple_of`.
    pub fn intermediate_size(&self) -> i64 {
        let round_up =
            |width: i64| (width + self.multiple_of - 1) / self.multiple_of * self.multiple_of;
        self.hidden_dim.unwrap_or_else(|| match self.family {
            LmFamily::MiniMind3 => round_up((self.dim as f64 * std::f64::consts::PI).ceil() as i64),
            LmFamily::MiniMind | LmFamily::MiniMind2 | LmFamily::Llama => {
                round_up(2 * (4 * self.dim) / 3)
            }
        })
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> i64 {
        self.head_dim.unwrap_or(self.dim / self.n_heads)
    }

    /// Dropout probability of attention's weights.
    pub fn attention_dropout(&self) -> f64 {
        self.attention_dropout.unwrap_or(self.dropout)
    }

    /// Checks that the numbers make a model.
    ///
    /// # Errors
    /// Says which number disagrees with which.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let wrong = |message: String| Err(ShapeError::Config(message));
        let sizes = [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("hidden_dim", self.hidden_dim.unwrap_or(1)),
            ("vocab_size", self.vocab_size),
            ("multiple_of", self.multiple_of),
            ("max_seq_len", self.max_seq_len),
        ];
        if let Some((name, value)) = sizes.iter().find(|(_, value)| *value < 1) {
            return wrong(format!("{name} is {value}; it must be at least 1"));
        }
        if self.head_dim.is_none() && self.dim % self.n_heads != 0 || self.head_dim() % 2 != 0 {
            return wrong(format!(
                "dim {} over n_heads {} must give an even head width (rotary embedding turns pairs)",
                self.dim, self.n_heads
            ));
        }
        if self.n_heads % self.n_kv_heads != 0 {
            return wrong(format!(
                "n_heads {} is not a multiple of n_kv_heads {}",
                self.n_heads, self.n_kv_heads
            ));
        }
        if self.use_moe && self.family == LmFamily::Llama {
            return wrong("a mixture of experts is known in MiniMind's forms only".into());
        }
        let MoeConfig { n_routed_experts, num_experts_per_tok, .. } = self.moe;
        if self.use_moe && !(1..=n_routed_experts).contains(&num_experts_per_tok) {
            return wrong(format!(
                "num_experts_per_tok {num_experts_per_tok} is not between 1 and n_routed_experts \
                 {n_routed_experts}"
            ));
        }
        for dropout in [self.dropout, self.attention_dropout()] {
            if !(0.0..1.0).contains(&dropout) {
                return wrong(format!("dropout {dropout} is not in [0, 1)"));
            }
        }
        if self.rope_theta.is_nan() || self.rope_theta <= 0.0 {
            return wrong(format!("rope_theta {} is not above 0", self.rope_theta));
        }
        if self.moe.n_shared_experts.is_some_and(|count| count < 0) {
            return wrong("n_shared_experts is below 0".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feed_forward_width_follows_the_reference() {
        assert_eq!(LmConfig::default().intermediate_size(), 1408);
        assert_eq!(LmConfig { dim: 768, ..LmConfig::default() }.intermediate_size(), 2048);
        // The present form: 64 · ⌈768 π / 64⌉.
        assert_eq!(LmFamily::MiniMind3.usual_config().intermediate_size(), 2432);
    }

    #[test]
    fn numbers_that_make_no_model_are_named() {
        let odd = LmConfig { dim: 512, n_heads: 7, ..LmConfig::default() };
        assert!(odd.validate().unwrap_err().to_string().contains("n_heads 7"));
        let kv = LmConfig { n_kv_heads: 3, ..LmConfig::default() };
        assert!(kv.validate().unwrap_err().to_string().contains("n_kv_heads 3"));
    }
}
