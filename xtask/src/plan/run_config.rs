//! What a run's `config.json` says of its model, in the form of whichever family wrote it.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Projector;
use super::shape::{self, Experts, Naming, Shape, Vision};

/// A run's `config.json`.
pub struct RunConfig<'a> {
    /// The parsed file.
    pub tree: &'a Value,
    /// The run's folder, for messages.
    pub out_dir: &'a Path,
}

impl RunConfig<'_> {
    /// The whole number at a JSON pointer.
    pub fn number(&self, path: &str) -> Result<u64> {
        self.tree.pointer(path).and_then(Value::as_u64).with_context(|| {
            format!(
                "{}: expected a whole number at {path}",
                self.out_dir.join("config.json").display()
            )
        })
    }

    /// Whether the value at a JSON pointer is `true`.
    pub fn is_true(&self, path: &str) -> bool {
        self.tree.pointer(path).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The shape of the model, in whichever form the language model's family writes it.
    pub fn shape(&self) -> Result<Shape> {
        let vision = Vision {
            has_class_token: !self.tree["vision"]["model_type"]
                .as_str()
                .is_some_and(|kind| kind.starts_with("siglip")),
            hidden_size: self.number("/vision/hidden_size")?,
            intermediate_size: self.number("/vision/intermediate_size")?,
            num_hidden_layers: self.number("/vision/num_hidden_layers")?,
            image_size: self.number("/vision/image_size")?,
            patch_size: self.number("/vision/patch_size")?,
        };
        let projector = match self.tree["projector"]["kind"].clone() {
            Value::Null => Projector::Linear,
            kind => serde_json::from_value(kind).with_context(|| {
                format!("{}: projector/kind", self.out_dir.join("config.json").display())
            })?,
        };
        if self.tree["hidden_size"].is_u64() {
            return self.hugging_face_shape(vision, projector);
        }
        let (dim, n_heads) = (self.number("/dim")?, self.number("/n_heads")?);
        let count = |key: &str, default| self.tree[key].as_u64().unwrap_or(default);
        Ok(Shape {
            n_layers: self.number("/n_layers")?,
            n_heads,
            n_kv_heads: self.number("/n_kv_heads")?,
            head_dim: dim / n_heads.max(1),
            vocab_size: self.number("/vocab_size")?,
            intermediate_size: count("hidden_dim", shape::intermediate_size(dim)),
            experts: self.is_true("/use_moe").then(|| Experts {
                routed: count("n_routed_experts", 4),
                per_token: count("num_experts_per_tok", 2),
                shared: count("n_shared_experts", 0) > 0,
            }),
            projector,
            vision,
            ..Shape::minimind(dim)
        })
    }

    fn hugging_face_shape(&self, vision: Vision, projector: Projector) -> Result<Shape> {
        let (dim, n_heads) = (self.number("/hidden_size")?, self.number("/num_attention_heads")?);
        let count = |key: &str, default| self.tree[key].as_u64().unwrap_or(default);
        let model_type = self.tree["model_type"].as_str().unwrap_or_default();
        let experts = self.is_true("/use_moe").then(|| Experts {
            routed: count("num_experts", count("n_routed_experts", 4)),
            per_token: count("num_experts_per_tok", 2),
            shared: count("n_shared_experts", 0) > 0,
        });
        let intermediate_size = self.number("/intermediate_size")?;
        Ok(Shape {
            n_layers: self.number("/num_hidden_layers")?,
            n_heads,
            n_kv_heads: count("num_key_value_heads", n_heads),
            head_dim: count("head_dim", dim / n_heads.max(1)),
            vocab_size: self.number("/vocab_size")?,
            intermediate_size: match experts {
                Some(_) => count("moe_intermediate_size", intermediate_size),
                None => intermediate_size,
            },
            experts,
            naming: Naming::HuggingFace,
            is_tied: self.is_true("/tie_word_embeddings"),
            qk_norm: self.tree["qk_norm"]
                .as_bool()
                .unwrap_or(["qwen3", "minimind", "minimind-v"].contains(&model_type)),
            has_qkv_bias: model_type == "qwen2" || self.is_true("/attention_bias"),
            projector,
            vision,
            ..Shape::minimind(dim)
        })
    }
}
