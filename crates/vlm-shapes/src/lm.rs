//! The configuration of the language model. `lm_json.rs` and `hugging_face.rs` read and write the
//! `config.json` of each family.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::family::LmFamily;
use crate::limits::{self, MAX_BLOCKS, MAX_EXPERTS, MAX_HEADS, MAX_WIDTH};
use crate::names::LmNames;
use crate::{RopeScaling, RotaryLayout, ShapeError};

/// The configuration of the language model. The fields have the names of MiniMind's `LMConfig` for
/// every family; a file has the keys of its own family.
///
/// Start from [`LmFamily::default_config`]: setting only `family` changes names and keys, but not
/// what the model computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct LmConfig {
    /// The published format.
    pub family: LmFamily,
    /// Hidden size H.
    pub dim: i64,
    /// Number of transformer blocks.
    pub n_layers: i64,
    /// Number of query heads.
    pub n_heads: i64,
    /// Number of key and value heads; divides `n_heads`.
    pub n_kv_heads: i64,
    /// Width of one attention head; `None` means `dim / n_heads`.
    pub head_dim: Option<i64>,
    /// Which elements of a head the rotary embedding rotates as one pair.
    pub rotary_layout: RotaryLayout,
    /// Whether the queries and keys of each head are normalised.
    pub qk_norm: bool,
    /// Whether the query, key and value layers have biases.
    pub qkv_bias: bool,
    /// Whether the output layer of attention has a bias.
    pub attention_output_bias: bool,
    /// Whether the linear layers of the feed-forward layer have biases.
    pub mlp_bias: bool,
    /// Number of rows of the embedding table.
    pub vocab_size: i64,
    /// Whether the input and output embeddings are one tensor.
    pub tie_word_embeddings: bool,
    /// Width of the feed-forward layer; `None` means that it follows from `dim`, see
    /// [`Self::intermediate_size`].
    pub hidden_dim: Option<i64>,
    /// Where the feed-forward width follows from `dim`, it is rounded up to a multiple of this.
    pub multiple_of: i64,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// How the rotary angles are scaled.
    pub rope_scaling: RopeScaling,
    /// Longest sequence, in tokens.
    pub max_seq_len: i64,
    /// Dropout probability of the embeddings and of the output of attention, in `[0, 1)`.
    pub dropout: f64,
    /// Dropout probability of the attention weights; `None` means `dropout`.
    pub attention_dropout: Option<f64>,
    /// Whether `dropout` also applies to the output of the feed-forward layer.
    pub mlp_dropout: bool,
    /// Whether each block has a mixture of experts instead of one feed-forward layer.
    pub use_moe: bool,
    /// The configuration of the experts, used if `use_moe` is set.
    pub moe: MoeConfig,
}

/// The configuration of a mixture of experts, with the names of MiniMind's `LMConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoeConfig {
    /// Number of experts that the router chooses from.
    pub n_routed_experts: i64,
    /// Number of routed experts that process each token.
    pub num_experts_per_tok: i64,
    /// Number of shared experts, which process all tokens. MiniMind of April 2025 treats any number
    /// above 0 as 1, see [`LmConfig::num_shared_experts`].
    pub n_shared_experts: Option<i64>,
    /// Weight of the auxiliary loss.
    pub aux_loss_alpha: f64,
    /// Whether the weights of a token's experts are scaled to sum to 1.
    pub norm_topk_prob: bool,
    /// Whether `norm_topk_prob` also applies if a token has a single expert. Its weight is then
    /// always 1.
    #[serde(skip)]
    pub norm_single_expert: bool,
    /// Scope of the load-balancing loss.
    #[serde(skip)]
    pub load_balance: LoadBalance,
}

/// Scope of the load-balancing loss of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadBalance {
    /// Each row of the batch separately: DeepSeek-V2 (section 2.2.2), MiniMind of April 2025,
    /// MiniMind2.
    #[default]
    PerRow,
    /// All tokens of the batch together: Switch Transformer (Fedus et al. 2021), `minimind-3`.
    PerBatch,
}

impl Default for MoeConfig {
    fn default() -> Self {
        Self {
            n_routed_experts: 4,
            num_experts_per_tok: 2,
            n_shared_experts: Some(1),
            aux_loss_alpha: 0.1,
            norm_topk_prob: true,
            norm_single_expert: false,
            load_balance: LoadBalance::PerRow,
        }
    }
}

impl Default for LmConfig {
    /// The 26 M MiniMind of April 2025.
    fn default() -> Self {
        Self {
            family: LmFamily::MiniMind,
            dim: 512,
            n_layers: 8,
            n_heads: 8,
            n_kv_heads: 2,
            head_dim: None,
            rotary_layout: RotaryLayout::Interleaved,
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
            mlp_dropout: true,
            use_moe: false,
            moe: MoeConfig::default(),
        }
    }
}

impl LmFamily {
    /// The configuration of the best-known model of the family: the 26 M MiniMind and MiniMind2,
    /// the 64 M `minimind-3`, SmolLM2 135 M.
    pub fn default_config(self) -> LmConfig {
        match self {
            Self::MiniMind => LmConfig::default(),
            Self::MiniMind2 => LmConfig {
                family: self,
                rotary_layout: RotaryLayout::HalfSplit,
                max_seq_len: 32768,
                ..LmConfig::default()
            },
            Self::MiniMind3 => LmConfig {
                family: self,
                dim: 768,
                n_kv_heads: 4,
                rotary_layout: RotaryLayout::HalfSplit,
                qk_norm: true,
                norm_eps: 1e-6,
                max_seq_len: 32768,
                mlp_dropout: false,
                moe: MoeConfig {
                    num_experts_per_tok: 1,
                    n_shared_experts: None,
                    aux_loss_alpha: 5e-4,
                    norm_single_expert: true,
                    load_balance: LoadBalance::PerBatch,
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
                rotary_layout: RotaryLayout::HalfSplit,
                vocab_size: 49152,
                hidden_dim: Some(1536),
                rope_theta: 1e5,
                max_seq_len: 8192,
                mlp_dropout: false,
                ..LmConfig::default()
            },
        }
    }
}

impl LmConfig {
    /// The names of this model's tensors.
    pub fn names(&self) -> &'static LmNames {
        LmNames::of(self.family)
    }

    /// Width of the feed-forward layer: `hidden_dim` if it is set, else ⅔ · 4 · `dim` (section 2.2
    /// of Touvron et al. 2023) or, for `minimind-3`, π · `dim`, rounded up to a multiple of
    /// `multiple_of`.
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

    /// Width of all query heads together.
    pub fn query_dim(&self) -> i64 {
        self.n_heads * self.head_dim()
    }

    /// Width of all key heads (or all value heads) together.
    pub fn kv_dim(&self) -> i64 {
        self.n_kv_heads * self.head_dim()
    }

    /// Largest number of positions, of prompt and generated text together. In MiniMind of April
    /// 2025 `max_seq_len` is the length of a training sequence; the rotary embedding covers three
    /// times as many positions, so that text can be generated after a prompt of full length.
    pub fn max_positions(&self) -> i64 {
        match self.family {
            LmFamily::MiniMind => (3 * self.max_seq_len).max(2048),
            LmFamily::MiniMind2 | LmFamily::MiniMind3 | LmFamily::Llama => self.max_seq_len,
        }
    }

    /// Number of shared experts in each block.
    pub fn num_shared_experts(&self) -> i64 {
        let count = self.moe.n_shared_experts.unwrap_or(0);
        if self.names().numbers_shared_experts { count } else { count.min(1) }
    }

    /// Number of feed-forward layers that a token passes through in a block: one, or its routed and
    /// shared experts.
    pub fn feed_forwards_per_token(&self) -> i64 {
        match self.use_moe {
            true => self.moe.num_experts_per_tok + self.num_shared_experts(),
            false => 1,
        }
    }

    /// Dropout probability of the attention weights.
    pub fn attention_dropout(&self) -> f64 {
        self.attention_dropout.unwrap_or(self.dropout)
    }

    /// Checks that the numbers describe a model.
    ///
    /// # Errors
    /// A number cannot be used; the message names it.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let wrong = |message: String| Err(ShapeError::Config(message));
        limits::check(&[
            ("dim", self.dim, MAX_WIDTH),
            ("n_layers", self.n_layers, MAX_BLOCKS),
            ("n_heads", self.n_heads, MAX_HEADS),
            ("n_kv_heads", self.n_kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim.unwrap_or(1), MAX_HEADS),
            ("hidden_dim", self.hidden_dim.unwrap_or(1), MAX_WIDTH),
            ("vocab_size", self.vocab_size, MAX_WIDTH),
            ("multiple_of", self.multiple_of, MAX_WIDTH),
            ("max_seq_len", self.max_seq_len, MAX_WIDTH),
        ])?;
        if self.head_dim.is_none() && self.dim % self.n_heads != 0 || self.head_dim() % 2 != 0 {
            return wrong(format!(
                "dim {} divided by n_heads {} must be an even integer (rotary embedding rotates \
                 pairs)",
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
            return wrong(
                "use_moe is true; a mixture of experts is supported for MiniMind only".into(),
            );
        }
        let MoeConfig { n_routed_experts, num_experts_per_tok, n_shared_experts, .. } = self.moe;
        let num_shared = n_shared_experts.unwrap_or(0);
        if self.use_moe {
            let limit = MAX_EXPERTS / self.n_layers;
            limits::check(&[("n_routed_experts", n_routed_experts, limit)])?;
            if num_shared > limit {
                return wrong(format!("n_shared_experts is {num_shared}; the limit is {limit}"));
            }
        }
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
        if num_shared < 0 {
            return wrong("n_shared_experts is below 0".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feed_forward_width_equals_the_reference() {
        assert_eq!(LmConfig::default().intermediate_size(), 1408);
        assert_eq!(LmConfig { dim: 768, ..LmConfig::default() }.intermediate_size(), 2048);
        // minimind-3: 64 · ⌈768 π / 64⌉.
        assert_eq!(LmFamily::MiniMind3.default_config().intermediate_size(), 2432);
    }

    #[test]
    fn numbers_beyond_the_limits_are_refused_by_name() {
        let base = LmConfig::default();
        let experts = |n_routed_experts, n_shared_experts| LmConfig {
            use_moe: true,
            moe: MoeConfig { n_routed_experts, n_shared_experts, ..base.moe.clone() },
            ..base.clone()
        };
        for (config, name) in [
            (LmConfig { dim: MAX_WIDTH + 1, ..base.clone() }, "dim is 16777217; the limit is"),
            (LmConfig { n_layers: MAX_BLOCKS + 1, ..base.clone() }, "n_layers"),
            (LmConfig { n_heads: MAX_HEADS + 1, ..base.clone() }, "n_heads"),
            (LmConfig { vocab_size: i64::MAX, ..base.clone() }, "vocab_size"),
            (experts(MAX_EXPERTS, None), "n_routed_experts"),
            (experts(4, Some(MAX_EXPERTS)), "n_shared_experts"),
        ] {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn invalid_numbers_are_named() {
        let odd = LmConfig { dim: 512, n_heads: 7, ..LmConfig::default() };
        assert!(odd.validate().unwrap_err().to_string().contains("n_heads 7"));
        let kv = LmConfig { n_kv_heads: 3, ..LmConfig::default() };
        assert!(kv.validate().unwrap_err().to_string().contains("n_kv_heads 3"));
    }
}
