//! Shapes of the models, as their configuration files write them. No tensors here.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ModelError;

/// Shape of the language model, with the reference's own names (MiniMind's `LMConfig`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LmConfig {
    /// Hidden size H.
    pub dim: i64,
    /// Transformer blocks.
    pub n_layers: i64,
    /// Query heads.
    pub n_heads: i64,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: i64,
    /// Rows of the embedding table.
    pub vocab_size: i64,
    /// Width of the feed-forward layer; `None`: `2/3 · 4 · dim` rounded up to `multiple_of`.
    pub hidden_dim: Option<i64>,
    /// Rounding of the feed-forward width.
    pub multiple_of: i64,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Longest sequence, in tokens.
    pub max_seq_len: i64,
    /// Dropout probability in training, 0 to 1.
    pub dropout: f64,
    /// Mixture of experts instead of one feed-forward layer.
    pub use_moe: bool,
    /// The experts, where there are any.
    #[serde(flatten)]
    pub moe: MoeConfig,
}

/// Shape of a mixture of experts, with the reference's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoeConfig {
    /// Experts that tokens are routed to.
    pub n_routed_experts: i64,
    /// Experts a token is sent to.
    pub num_experts_per_tok: i64,
    /// Whether there is an expert for all tokens; the reference has one, whatever the number.
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
            dim: 512,
            n_layers: 8,
            n_heads: 8,
            n_kv_heads: 2,
            vocab_size: 6400,
            hidden_dim: None,
            multiple_of: 64,
            norm_eps: 1e-5,
            rope_theta: 1e6,
            max_seq_len: 640,
            dropout: 0.0,
            use_moe: false,
            moe: MoeConfig::default(),
        }
    }
}

impl LmConfig {
    /// Reads `config.json`; keys it does not know are left alone.
    ///
    /// # Errors
    /// The file cannot be read or holds no valid shape.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let config: Self = read_json(path)?;
        config.validate()?;
        Ok(config)
    }

    /// Width of the feed-forward layer (LLaMA's rule, section 2.2 of Touvron et al. 2023).
    pub fn intermediate_size(&self) -> i64 {
        self.hidden_dim.unwrap_or_else(|| {
            let two_thirds = 2 * (4 * self.dim) / 3;
            (two_thirds + self.multiple_of - 1) / self.multiple_of * self.multiple_of
        })
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> i64 {
        self.dim / self.n_heads
    }

    /// Checks that the numbers make a model.
    ///
    /// # Errors
    /// Says which number disagrees with which.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong = |message: String| Err(ModelError::Config(message));
        let sizes = [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("vocab_size", self.vocab_size),
            ("multiple_of", self.multiple_of),
            ("max_seq_len", self.max_seq_len),
        ];
        if let Some((name, value)) = sizes.iter().find(|(_, value)| *value < 1) {
            return wrong(format!("{name} is {value}; it must be at least 1"));
        }
        if self.dim % self.n_heads != 0 || self.head_dim() % 2 != 0 {
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
        let MoeConfig { n_routed_experts, num_experts_per_tok, .. } = self.moe;
        if self.use_moe && !(1..=n_routed_experts).contains(&num_experts_per_tok) {
            return wrong(format!(
                "num_experts_per_tok {num_experts_per_tok} is not between 1 and n_routed_experts \
                 {n_routed_experts}"
            ));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong(format!("dropout {} is not in [0, 1)", self.dropout));
        }
        Ok(())
    }
}

/// Shape of a CLIP vision transformer, with Hugging Face's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Width V of a patch feature.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Transformer blocks.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Colour channels of the input.
    pub num_channels: i64,
    /// Side of the input in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Added to the variance in layer normalisation.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    /// ViT-B/16 at 224 pixels, with OpenAI's activation.
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 16,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// Reads a Hugging Face `config.json`: a whole CLIP's (`vision_config` within) or a vision
    /// tower's own.
    ///
    /// # Errors
    /// The file cannot be read, is another model's, or its numbers make no model.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let mut json: serde_json::Value = read_json(path)?;
        let family = json["model_type"].as_str().unwrap_or("clip").to_owned();
        if !matches!(family.as_str(), "clip" | "clip_vision_model") {
            return Err(ModelError::Config(format!(
                "{}: model_type is {family:?}; expected \"clip\" or \"clip_vision_model\"",
                path.display()
            )));
        }
        if json["vision_config"].is_object() {
            json = json["vision_config"].take();
        }
        let config: Self = serde_json::from_value(json)
            .map_err(|e| ModelError::Config(format!("{}: {e}", path.display())))?;
        config.validate()?;
        Ok(config)
    }

    /// Patches of one image: the number of image placeholder tokens.
    pub fn num_patches(&self) -> i64 {
        let side = self.image_size / self.patch_size;
        side * side
    }

    fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_channels,
            self.image_size,
            self.patch_size,
        ];
        if sizes.iter().any(|&size| size < 1)
            || self.hidden_size % self.num_attention_heads != 0
            || self.image_size % self.patch_size != 0
        {
            return Err(ModelError::Config(format!(
                "vision encoder: hidden_size {} over {} heads and image_size {} over patch_size {} \
                 must divide evenly",
                self.hidden_size, self.num_attention_heads, self.image_size, self.patch_size
            )));
        }
        if !matches!(self.hidden_act.as_str(), "quick_gelu" | "gelu") {
            return Err(ModelError::Config(format!(
                "vision encoder: hidden_act {:?}; known are \"quick_gelu\" and \"gelu\"",
                self.hidden_act
            )));
        }
        Ok(())
    }
}

/// Reads a JSON file into a value.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| ModelError::Config(format!("{}: {e}", path.display())))?;
    serde_json::from_str(&text).map_err(|e| ModelError::Config(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feed_forward_width_follows_the_reference() {
        assert_eq!(LmConfig::default().intermediate_size(), 1408);
        assert_eq!(LmConfig { dim: 768, ..LmConfig::default() }.intermediate_size(), 2048);
    }

    #[test]
    fn numbers_that_make_no_model_are_named() {
        let odd = LmConfig { dim: 512, n_heads: 7, ..LmConfig::default() };
        assert!(odd.validate().unwrap_err().to_string().contains("n_heads 7"));
        let kv = LmConfig { n_kv_heads: 3, ..LmConfig::default() };
        assert!(kv.validate().unwrap_err().to_string().contains("n_kv_heads 3"));
    }
}
