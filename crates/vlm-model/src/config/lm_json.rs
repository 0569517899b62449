//! The language model's `config.json`, in the form of each family.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{LmConfig, LmFamily, MoeConfig};
use crate::ModelError;

/// MiniMind's `LMConfig`.
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

/// What Hugging Face's `LlamaConfig`, `Qwen3Config` and MiniMind's `MiniMindConfig` have in common.
/// What a file leaves out is the class's own default, which differs between them.
#[derive(Deserialize)]
struct HuggingFaceForm {
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    intermediate_size: Option<i64>,
    vocab_size: Option<i64>,
    max_position_embeddings: Option<i64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    tie_word_embeddings: Option<bool>,
    dropout: Option<f64>,
    attention_dropout: Option<f64>,
    use_moe: Option<bool>,
    num_experts: Option<i64>,
    num_experts_per_tok: Option<i64>,
    moe_intermediate_size: Option<i64>,
    norm_topk_prob: Option<bool>,
    router_aux_loss_coef: Option<f64>,
}

/// The classes of the Hugging Face form that are known, by `model_type`: family, and whether
/// queries and keys are normalised.
const MODEL_TYPES: [(&str, LmFamily, bool); 4] = [
    ("llama", LmFamily::Llama, false),
    ("qwen3", LmFamily::Llama, true),
    ("minimind", LmFamily::MiniMind3, true),
    ("minimind-v", LmFamily::MiniMind3, true),
];

impl LmConfig {
    /// The shape that a `config.json` describes, of whichever family it is.
    ///
    /// # Errors
    /// Another model's configuration, or one with a part that is not implemented, by name.
    pub fn from_json(json: &Value) -> Result<Self, ModelError> {
        let read_error = |e: serde_json::Error| ModelError::Config(e.to_string());
        if json.get("dim").is_some() {
            let form: MiniMindForm = serde_json::from_value(json.clone()).map_err(read_error)?;
            return Ok(form.into());
        }
        if json.get("hidden_size").is_none() {
            return Err(ModelError::Config(
                "neither dim nor hidden_size: this is not a language model's configuration".into(),
            ));
        }
        let (family, qk_norm) = class_of(json)?;
        refuse_variants(json)?;
        let form: HuggingFaceForm = serde_json::from_value(json.clone()).map_err(read_error)?;
        Ok(form.resolve(family, qk_norm))
    }

    /// Whether a `config.json` is a language model's of one of the families, by its keys.
    pub fn is_language_model(json: &Value) -> bool {
        json.get("dim").is_some() || json.get("hidden_size").is_some() && class_of(json).is_ok()
    }

    /// The configuration in the family's own form, as its own loader reads it.
    pub fn to_json(&self) -> Value {
        if self.family == LmFamily::MiniMind {
            return json!(MiniMindForm::from(self.clone()));
        }
        let (model_type, class) = match (self.family, self.qk_norm) {
            (LmFamily::MiniMind3, _) => ("minimind", "MiniMindForCausalLM"),
            (_, true) => ("qwen3", "Qwen3ForCausalLM"),
            (_, false) => ("llama", "LlamaForCausalLM"),
        };
        let mut tree = json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_size": self.dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim(),
            "intermediate_size": self.intermediate_size(),
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_seq_len,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": false,
            "attention_dropout": self.dropout,
        });
        if self.family == LmFamily::MiniMind3 {
            tree["dropout"] = json!(self.dropout);
            tree["use_moe"] = json!(self.use_moe);
        }
        if self.use_moe {
            tree["num_experts"] = json!(self.moe.n_routed_experts);
            tree["num_experts_per_tok"] = json!(self.moe.num_experts_per_tok);
            tree["moe_intermediate_size"] = json!(self.intermediate_size());
            tree["norm_topk_prob"] = json!(self.moe.norm_topk_prob);
            tree["router_aux_loss_coef"] = json!(self.moe.aux_loss_alpha);
        }
        tree
    }
}

impl TryFrom<Value> for LmConfig {
    type Error = ModelError;

    fn try_from(json: Value) -> Result<Self, ModelError> {
        Self::from_json(&json)
    }
}

impl From<LmConfig> for Value {
    fn from(config: LmConfig) -> Self {
        config.to_json()
    }
}

impl HuggingFaceForm {
    fn resolve(self, family: LmFamily, qk_norm: bool) -> LmConfig {
        let usual = family.usual_config();
        // LlamaConfig's own defaults; SmolLM2's file names everything.
        let of_class =
            |minimind, llama| if family == LmFamily::MiniMind3 { minimind } else { llama };
        let usual_kv_heads = of_class(usual.n_kv_heads, self.num_attention_heads);
        let use_moe = self.use_moe.unwrap_or(false);
        let width = if use_moe { self.moe_intermediate_size } else { None };
        LmConfig {
            family,
            dim: self.hidden_size,
            n_layers: self.num_hidden_layers,
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(usual_kv_heads),
            head_dim: self.head_dim,
            qk_norm,
            vocab_size: self.vocab_size.unwrap_or(of_class(usual.vocab_size, 32000)),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(family == LmFamily::MiniMind3),
            hidden_dim: width.or(self.intermediate_size),
            multiple_of: usual.multiple_of,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: self.rope_theta.unwrap_or(if family == LmFamily::MiniMind3 {
                usual.rope_theta
            } else {
                1e4
            }),
            max_seq_len: self.max_position_embeddings.unwrap_or(of_class(usual.max_seq_len, 2048)),
            dropout: self.dropout.or(self.attention_dropout).unwrap_or(0.0),
            use_moe,
            moe: MoeConfig {
                n_routed_experts: self.num_experts.unwrap_or(usual.moe.n_routed_experts),
                num_experts_per_tok: self
                    .num_experts_per_tok
                    .unwrap_or(usual.moe.num_experts_per_tok),
                n_shared_experts: None,
                aux_loss_alpha: self.router_aux_loss_coef.unwrap_or(usual.moe.aux_loss_alpha),
                norm_topk_prob: self.norm_topk_prob.unwrap_or(usual.moe.norm_topk_prob),
            },
        }
    }
}

/// By `model_type`, else by the name of the class in `architectures`.
fn class_of(json: &Value) -> Result<(LmFamily, bool), ModelError> {
    let model_type = json["model_type"].as_str().unwrap_or_default().to_lowercase();
    let architecture = json["architectures"][0].as_str().unwrap_or_default().to_lowercase();
    let named = MODEL_TYPES.iter().find(|(name, ..)| *name == model_type);
    let by_class = || {
        let fits = |name: &str| model_type.is_empty() && architecture.starts_with(name);
        MODEL_TYPES.iter().find(|(name, ..)| fits(name))
    };
    named.or_else(by_class).map(|&(_, family, qk_norm)| (family, qk_norm)).ok_or_else(|| {
        let found = if model_type.is_empty() { architecture } else { model_type };
        let known: Vec<_> = MODEL_TYPES.iter().map(|(name, ..)| *name).collect();
        ModelError::Config(format!("model_type is {found:?}; known are {}", known.join(", ")))
    })
}

/// Parts of these classes that change the numbers and are not implemented.
fn refuse_variants(json: &Value) -> Result<(), ModelError> {
    for key in ["attention_bias", "mlp_bias", "use_sliding_window", "inference_rope_scaling"] {
        if json[key].as_bool() == Some(true) {
            return Err(ModelError::Config(format!("{key} is true, which is not implemented")));
        }
    }
    let scaling = &json["rope_scaling"];
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    if !scaling.is_null() && kind != Some("default") {
        return Err(ModelError::Config(format!(
            "rope_scaling is {scaling}, which is not implemented; only plain rotary angles are"
        )));
    }
    match json["hidden_act"].as_str() {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => {
            Err(ModelError::Config(format!("hidden_act is {other:?}; known is \"silu\"")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_comes_back_from_its_own_form() {
        let moe = LmConfig { use_moe: true, ..LmFamily::MiniMind3.usual_config() };
        let qwen3 =
            LmConfig { qk_norm: true, head_dim: Some(128), ..LmFamily::Llama.usual_config() };
        for config in [LmConfig::default(), LmFamily::Llama.usual_config(), qwen3, moe] {
            let back = LmConfig::from_json(&config.to_json()).unwrap();
            assert_eq!(back.to_json(), config.to_json());
            assert_eq!((back.family, back.qk_norm), (config.family, config.qk_norm));
            assert_eq!(back.head_dim(), config.head_dim());
            assert_eq!(back.intermediate_size(), config.intermediate_size());
        }
    }

    #[test]
    fn what_a_file_leaves_out_is_the_classs_own_default() {
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
    fn models_that_would_be_computed_wrongly_are_refused() {
        let base = json!({
            "model_type": "llama",
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        });
        let refusal = |key: &str, value: Value| {
            let mut json = base.clone();
            json[key] = value;
            LmConfig::from_json(&json).unwrap_err().to_string()
        };
        assert!(refusal("model_type", json!("gpt2")).contains("\"gpt2\"; known are llama"));
        assert!(refusal("attention_bias", json!(true)).contains("attention_bias"));
        assert!(refusal("hidden_act", json!("gelu")).contains("\"gelu\""));
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0});
        assert!(refusal("rope_scaling", llama3).contains("llama3"));
    }
}
