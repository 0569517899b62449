//! Reads and writes the language model's `config.json` with the keys of its family.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ShapeError;
use crate::config_file::{in_file, read_json};
use crate::keys::{self, Neutral};
use crate::{LmConfig, LmFamily, MoeConfig, hugging_face};

/// The keys of MiniMind's `LMConfig`.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct MiniMindForm {
    dim: i64,
    n_layers: i64,
    n_heads: i64,
    n_kv_heads: i64,
    vocab_size: i64,
    hidden_dim: Option<i64>,
    multiple_of: i64,
    norm_eps: f64,
    rope_theta: f64,
    max_seq_len: i64,
    dropout: f64,
    use_moe: bool,
    #[serde(flatten)]
    moe: MoeConfig,
}

impl Default for MiniMindForm {
    fn default() -> Self {
        LmConfig::default().into()
    }
}

impl From<LmConfig> for MiniMindForm {
    fn from(config: LmConfig) -> Self {
        Self {
            dim: config.dim,
            n_layers: config.n_layers,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            vocab_size: config.vocab_size,
            hidden_dim: config.hidden_dim,
            multiple_of: config.multiple_of,
            norm_eps: config.norm_eps,
            rope_theta: config.rope_theta,
            max_seq_len: config.max_seq_len,
            dropout: config.dropout,
            use_moe: config.use_moe,
            moe: config.moe,
        }
    }
}

impl From<MiniMindForm> for LmConfig {
    fn from(form: MiniMindForm) -> Self {
        Self {
            dim: form.dim,
            n_layers: form.n_layers,
            n_heads: form.n_heads,
            n_kv_heads: form.n_kv_heads,
            vocab_size: form.vocab_size,
            hidden_dim: form.hidden_dim,
            multiple_of: form.multiple_of,
            norm_eps: form.norm_eps,
            rope_theta: form.rope_theta,
            max_seq_len: form.max_seq_len,
            dropout: form.dropout,
            use_moe: form.use_moe,
            moe: form.moe,
            ..Self::default()
        }
    }
}

/// MiniMind's keys that are not in [`MiniMindForm`].
const MINIMIND_KEYS: [&str; 4] = ["image_special_token", "image_ids", "seq_aux", "scoring_func"];

impl LmConfig {
    /// Reads a `config.json` of any of the families. An unsupported key that could change what the
    /// model computes is an error; [`Self::unread_keys`] lists the other unknown keys.
    ///
    /// # Errors
    /// The file cannot be read, describes an unsupported model, or fails [`Self::validate`].
    pub fn from_file(path: &Path) -> Result<Self, ShapeError> {
        let config = Self::from_json(&read_json(path)?).map_err(in_file(path))?;
        config.validate().map_err(in_file(path))?;
        Ok(config)
    }

    /// As [`Self::unread_keys`], for a file.
    ///
    /// # Errors
    /// The file cannot be read, or has a key that may change what the model computes.
    pub fn unread_keys_of(path: &Path) -> Result<Vec<String>, ShapeError> {
        Self::unread_keys(&read_json(path)?).map_err(in_file(path))
    }

    /// Reads the content of a `config.json` of any family. Of a vision-language model's file it
    /// reads the language model's part.
    ///
    /// # Errors
    /// The model, or one of its settings, which the message names, is not supported.
    pub fn from_json(json: &Value) -> Result<Self, ShapeError> {
        let json = &*hugging_face::language_part(json)?;
        if json.get("dim").is_some() {
            Self::unread_keys(json)?;
            let form: MiniMindForm = serde_json::from_value(json.clone())
                .map_err(|e| ShapeError::Config(e.to_string()))?;
            return Ok(form.into());
        }
        if json.get("hidden_size").is_none() {
            return Err(ShapeError::Config(
                "neither dim nor hidden_size is there: this is not a language model's \
                 configuration"
                    .into(),
            ));
        }
        hugging_face::read(json)
    }

    /// Whether the keys of a `config.json` are those of a language model of one of the families.
    pub fn is_language_model(json: &Value) -> bool {
        let Ok(json) = hugging_face::language_part(json) else { return false };
        json.get("dim").is_some()
            || json.get("hidden_size").is_some() && hugging_face::is_known(&json)
    }

    /// Unknown keys of a `config.json` that are ignored although they have a value: worth a
    /// warning.
    ///
    /// # Errors
    /// A key may change what the model computes.
    pub fn unread_keys(json: &Value) -> Result<Vec<String>, ShapeError> {
        let json = &*hugging_face::language_part(json)?;
        if json.get("dim").is_none() {
            return hugging_face::unread_keys(json);
        }
        let form = json!(MiniMindForm::default());
        let form_keys = form.as_object().into_iter().flat_map(|form| form.keys());
        let mut read: Vec<&str> = form_keys.map(String::as_str).collect();
        read.extend(MINIMIND_KEYS);
        read.extend(hugging_face::OWN_KEYS);
        let mut must_be: Vec<(&str, &[Neutral])> = Vec::new();
        if json["use_moe"].as_bool() == Some(true) {
            read.retain(|key| !["seq_aux", "scoring_func"].contains(key));
            must_be.push(("seq_aux", &[Neutral::True]));
        }
        json.as_object().map_or(Ok(Vec::new()), |config| keys::check(config, &read, &must_be))
    }

    /// The configuration as `config.json` of its family.
    pub fn to_json(&self) -> Value {
        match self.family {
            LmFamily::MiniMind => json!(MiniMindForm::from(self.clone())),
            _ => hugging_face::write(self),
        }
    }
}

impl TryFrom<Value> for LmConfig {
    type Error = ShapeError;

    fn try_from(json: Value) -> Result<Self, ShapeError> {
        Self::from_json(&json)
    }
}

impl From<LmConfig> for Value {
    fn from(config: LmConfig) -> Self {
        config.to_json()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_read_back_from_its_own_file() {
        let moe = LmConfig { use_moe: true, ..LmFamily::MiniMind3.default_config() };
        let qwen3 =
            LmConfig { qk_norm: true, head_dim: Some(128), ..LmFamily::Llama.default_config() };
        let minimind2 = LmFamily::MiniMind2.default_config();
        for config in [LmConfig::default(), LmFamily::Llama.default_config(), qwen3, moe, minimind2]
        {
            let back = LmConfig::from_json(&config.to_json()).unwrap();
            assert_eq!(back.to_json(), config.to_json());
            assert_eq!((back.family, back.qk_norm), (config.family, config.qk_norm));
            assert_eq!(back.head_dim(), config.head_dim());
            assert_eq!(back.intermediate_size(), config.intermediate_size());
        }
    }

    #[test]
    fn keys_that_are_left_out_take_the_defaults_of_their_class() {
        let with = |model_type: &str| {
            LmConfig::from_json(&json!({
                "model_type": model_type,
                "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
            }))
            .unwrap()
        };
        let llama = with("llama");
        assert_eq!((llama.n_kv_heads, llama.vocab_size, llama.rope_theta), (8, 32000, 1e4));
        assert!(!llama.tie_word_embeddings && !llama.qk_norm);
        let minimind = with("minimind-v");
        assert_eq!((minimind.n_kv_heads, minimind.vocab_size, minimind.rope_theta), (4, 6400, 1e6));
        assert!(minimind.tie_word_embeddings && minimind.qk_norm);
    }

    #[test]
    fn sliding_windows_that_no_layer_uses_are_accepted() {
        let base = json!({
            "model_type": "qwen2", "max_position_embeddings": 4096,
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        });
        let read = |more: Value| {
            let mut json = base.clone();
            json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            LmConfig::from_json(&json).map_err(|error| error.to_string())
        };
        let off = json!({"use_sliding_window": false, "sliding_window": 1024});
        let none_has_it =
            json!({"use_sliding_window": true, "sliding_window": 1024, "max_window_layers": 2});
        let long = json!({"use_sliding_window": true, "sliding_window": 4096});
        for harmless in [off, none_has_it, long] {
            let config = read(harmless.clone()).expect("a harmless window");
            assert!(config.qkv_bias && !config.attention_output_bias, "{harmless}");
        }
        let last =
            json!({"use_sliding_window": true, "sliding_window": 1024, "max_window_layers": 1});
        assert!(read(last).unwrap_err().contains("sliding_window is 1024"));
    }

    #[test]
    fn the_language_model_is_found_in_a_vision_language_models_file() {
        let json = json!({
            "model_type": "llava",
            "text_config": {
                "model_type": "qwen2", "hidden_size": 64,
                "num_hidden_layers": 2, "num_attention_heads": 8,
            },
        });
        assert!(LmConfig::is_language_model(&json));
        assert!(LmConfig::from_json(&json).unwrap().qkv_bias);
    }

    #[test]
    fn unsupported_models_are_refused_by_name() {
        let base = json!({
            "model_type": "llama",
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        });
        let refusal = |key: &str, value: Value| {
            let mut json = base.clone();
            json[key] = value;
            LmConfig::from_json(&json).unwrap_err().to_string()
        };
        assert!(refusal("model_type", json!("gpt2")).contains("\"gpt2\"; supported: llama"));
        assert!(refusal("hidden_act", json!("gelu")).contains("\"gelu\""));
        let dynamic = json!({"rope_type": "dynamic", "factor": 8.0});
        assert!(refusal("rope_scaling", dynamic.clone()).contains("\"dynamic\""));
        assert!(refusal("rope_parameters", dynamic).contains("\"dynamic\""));
        assert!(refusal("sliding_window", json!(1024)).contains("sliding_window is 1024"));
        assert!(refusal("layer_types", json!(["sliding_attention"])).contains("layer_types"));
        assert!(refusal("no_rope_layers", json!([1, 0])).contains("no_rope_layers is [1,0]"));
        assert!(refusal("clip_qkv", json!(8)).contains("clip_qkv is 8"));
        assert!(refusal("use_moe", json!(true)).contains("use_moe is true"));
        assert!(refusal("model_type", json!("qwen2_moe")).contains("\"qwen2_moe\"; supported:"));
    }
}
