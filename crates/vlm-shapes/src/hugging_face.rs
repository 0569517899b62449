//! Reads and writes the `config.json` of the language models that use Hugging Face's tensor names:
//! LLaMA, Qwen2, Qwen3, and MiniMind from late April 2025 on.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::ShapeError;
use crate::foreign::ForeignModel;
use crate::keys::{self, Neutral, shortened, unsupported};
use crate::rope::Rope;
use crate::{LmConfig, LmFamily, MoeConfig};

/// A configuration class, with its defaults for keys that a file leaves out.
struct Class {
    model_type: &'static str,
    family: LmFamily,
    qk_norm: bool,
    /// Qwen2 has biases in the query, key and value layers only, and no key for them.
    qkv_bias: bool,
    /// `None` means `num_attention_heads`.
    num_key_value_heads: Option<i64>,
    /// `None` means `hidden_size / num_attention_heads`.
    head_dim: Option<i64>,
    vocab_size: i64,
    max_position_embeddings: i64,
    rms_norm_eps: f64,
    rope_theta: f64,
    tie_word_embeddings: bool,
}

const LLAMA: Class = Class {
    model_type: "llama",
    family: LmFamily::Llama,
    qk_norm: false,
    qkv_bias: false,
    num_key_value_heads: None,
    head_dim: None,
    vocab_size: 32000,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    rope_theta: 1e4,
    tie_word_embeddings: false,
};

const QWEN2: Class = Class {
    model_type: "qwen2",
    qkv_bias: true,
    vocab_size: 151_936,
    max_position_embeddings: 32768,
    ..LLAMA
};

const QWEN3: Class =
    Class { model_type: "qwen3", qk_norm: true, qkv_bias: false, head_dim: Some(128), ..QWEN2 };

const MINIMIND3: Class = Class {
    model_type: "minimind",
    family: LmFamily::MiniMind3,
    qk_norm: true,
    num_key_value_heads: Some(4),
    vocab_size: 6400,
    max_position_embeddings: 32768,
    rope_theta: 1e6,
    tie_word_embeddings: true,
    ..LLAMA
};

const MINIMIND2: Class = Class {
    family: LmFamily::MiniMind2,
    qk_norm: false,
    num_key_value_heads: Some(2),
    rms_norm_eps: 1e-5,
    ..MINIMIND3
};

/// The supported values of `model_type`.
const MODEL_TYPES: [&str; 5] = ["llama", "qwen2", "qwen3", "minimind", "minimind-v"];

/// Keys that only MiniMind2's configuration has; its class writes them with and without experts.
const MINIMIND2_KEYS: [&str; 5] =
    ["n_routed_experts", "n_shared_experts", "scoring_func", "aux_loss_alpha", "seq_aux"];

/// The keys that the classes have in common, and those of MiniMind's experts.
#[derive(Deserialize)]
struct Form {
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    intermediate_size: Option<i64>,
    vocab_size: Option<i64>,
    max_position_embeddings: Option<i64>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    dropout: Option<f64>,
    attention_dropout: Option<f64>,
    use_moe: Option<bool>,
    num_experts: Option<i64>,
    num_experts_per_tok: Option<i64>,
    moe_intermediate_size: Option<i64>,
    norm_topk_prob: Option<bool>,
    router_aux_loss_coef: Option<f64>,
    n_routed_experts: Option<i64>,
    n_shared_experts: Option<i64>,
    aux_loss_alpha: Option<f64>,
}

/// The keys of [`Form`] that every class has.
const KEYS: [&str; 14] = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "attention_bias", "mlp_bias", "dropout", "attention_dropout",
];

/// Keys that [`check_windows`] and [`check_rope_layers`] read.
const LAYER_KEYS: [&str; 4] =
    ["use_sliding_window", "sliding_window", "layer_types", "no_rope_layers"];

/// The keys of MiniMind's experts and of its vision-language model.
const MINIMIND_KEYS: [&str; 16] = [
    "use_moe", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
    "router_aux_loss_coef", "n_routed_experts", "n_shared_experts", "aux_loss_alpha",
    "image_special_token", "image_ids", "image_hidden_size", "image_token_len",
    "vision_hidden_size", "ve_dim", "seq_aux",
];

/// Keys that this program writes for the other parts of a vision-language model.
pub(crate) const OWN_KEYS: [&str; 3] = ["vision", "projector", "image_token"];

/// The language model's configuration within that of a vision-language model, else `json` itself.
///
/// # Errors
/// The language model of a [`ForeignModel`] is not supported; the message names it.
pub(crate) fn language_part(json: &Value) -> Result<Cow<'_, Value>, ShapeError> {
    if let Some(model) = ForeignModel::of(json) {
        return Ok(Cow::Owned(model.language()?));
    }
    let is_joined = json.get("hidden_size").is_none() && json.get("dim").is_none();
    let mut parts = ["text_config", "language_config", "llm_config"].iter().map(|key| &json[*key]);
    Ok(Cow::Borrowed(parts.find(|part| is_joined && part.is_object()).unwrap_or(json)))
}

/// Whether a configuration belongs to one of the classes.
pub(crate) fn is_known(json: &Value) -> bool {
    class_of(json).is_ok()
}

/// Reads a configuration of one of the classes.
///
/// # Errors
/// The configuration belongs to another class, or has an unsupported setting, which the message
/// names.
pub(crate) fn read(json: &Value) -> Result<LmConfig, ShapeError> {
    let class = class_of(json)?;
    unread_keys(json)?;
    let form: Form =
        serde_json::from_value(json.clone()).map_err(|e| ShapeError::Config(e.to_string()))?;
    let max_position_embeddings =
        form.max_position_embeddings.unwrap_or(class.max_position_embeddings);
    let empty = Map::new();
    let rope = Rope::read(json.as_object().unwrap_or(&empty), max_position_embeddings)?;
    let is_minimind = class.family != LmFamily::Llama;
    if is_minimind && rope.scaling != crate::RopeScaling::None {
        return Err(ShapeError::Config(
            "rope_scaling: MiniMind's own RoPE scaling is not supported".into(),
        ));
    }
    check_windows(json, &form, max_position_embeddings)?;
    check_rope_layers(json)?;
    Ok(form.resolve(class, rope, max_position_embeddings))
}

/// Unknown keys that are ignored although they have a value: worth a warning.
///
/// # Errors
/// A key may change what the model computes.
pub(crate) fn unread_keys(json: &Value) -> Result<Vec<String>, ShapeError> {
    let Some(config) = json.as_object() else { return Ok(Vec::new()) };
    let class = class_of(json)?;
    let mut read = [&KEYS[..], &LAYER_KEYS, &Rope::KEYS, &OWN_KEYS].concat();
    let mut must_be: Vec<(&str, &[Neutral])> = Vec::new();
    if class.family == LmFamily::Llama {
        must_be.push(("use_moe", &[Neutral::False]));
    } else {
        read.extend(MINIMIND_KEYS);
        must_be.push(("attention_bias", &[Neutral::False]));
        must_be.push(("mlp_bias", &[Neutral::False]));
        read.retain(|key| !["attention_bias", "mlp_bias"].contains(key));
        if json["use_moe"].as_bool() == Some(true) {
            must_be.push(("seq_aux", &[Neutral::True]));
            read.retain(|key| *key != "seq_aux");
        }
    }
    if class.qkv_bias {
        // Qwen2 has its biases for either value of `attention_bias`.
        must_be.push(("attention_bias", &[Neutral::True, Neutral::False]));
        must_be.push(("qkv_bias", &[Neutral::True]));
    }
    if class.qk_norm {
        must_be.push(("qk_norm", &[Neutral::True]));
        must_be.push(("use_qk_norm", &[Neutral::True]));
    }
    if class.model_type != LLAMA.model_type {
        // Only LLaMA's class has biases in the feed-forward layer.
        must_be.push(("mlp_bias", &[Neutral::False]));
        read.retain(|key| *key != "mlp_bias");
    }
    keys::check(config, &read, &must_be)
}

impl Form {
    fn resolve(self, class: Class, rope: Rope, max_position_embeddings: i64) -> LmConfig {
        let default = class.family.default_config();
        let is_llama = class.family == LmFamily::Llama;
        let use_moe = self.use_moe.unwrap_or(false);
        let width = if use_moe { self.moe_intermediate_size } else { None };
        let attention_bias = self.attention_bias.unwrap_or(false);
        // LLaMA's and Qwen's classes have dropout in attention only. `dropout` is a key that this
        // program adds when it trained with dropout elsewhere too.
        let dropout = self.dropout.or(self.attention_dropout.filter(|_| !is_llama));
        let attention_dropout = self.attention_dropout.filter(|_| is_llama);
        let moe = &default.moe;
        LmConfig {
            family: class.family,
            dim: self.hidden_size,
            n_layers: self.num_hidden_layers,
            n_heads: self.num_attention_heads,
            n_kv_heads: self
                .num_key_value_heads
                .or(class.num_key_value_heads)
                .unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.or(class.head_dim),
            rotary_layout: default.rotary_layout,
            qk_norm: class.qk_norm,
            qkv_bias: class.qkv_bias || attention_bias,
            attention_output_bias: attention_bias && !class.qkv_bias,
            mlp_bias: self.mlp_bias.unwrap_or(false),
            vocab_size: self.vocab_size.unwrap_or(class.vocab_size),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(class.tie_word_embeddings),
            hidden_dim: width.or(self.intermediate_size),
            multiple_of: default.multiple_of,
            norm_eps: self.rms_norm_eps.unwrap_or(class.rms_norm_eps),
            rope_theta: rope.theta.unwrap_or(class.rope_theta),
            rope_scaling: rope.scaling,
            max_seq_len: max_position_embeddings,
            dropout: dropout.unwrap_or(0.0),
            attention_dropout: attention_dropout.filter(|&p| p != dropout.unwrap_or(0.0)),
            mlp_dropout: default.mlp_dropout,
            use_moe,
            moe: MoeConfig {
                n_routed_experts: self
                    .n_routed_experts
                    .or(self.num_experts)
                    .unwrap_or(moe.n_routed_experts),
                num_experts_per_tok: self.num_experts_per_tok.unwrap_or(moe.num_experts_per_tok),
                n_shared_experts: match class.family {
                    LmFamily::MiniMind2 => self.n_shared_experts.or(moe.n_shared_experts),
                    _ => None,
                },
                aux_loss_alpha: self
                    .aux_loss_alpha
                    .or(self.router_aux_loss_coef)
                    .unwrap_or(moe.aux_loss_alpha),
                norm_topk_prob: self.norm_topk_prob.unwrap_or(moe.norm_topk_prob),
                norm_single_expert: moe.norm_single_expert,
                load_balance: moe.load_balance,
            },
        }
    }
}

/// The class named by `model_type`, or else by the first entry of `architectures`.
fn class_of(json: &Value) -> Result<Class, ShapeError> {
    let model_type = json["model_type"].as_str().unwrap_or_default().to_lowercase();
    let architecture = json["architectures"][0].as_str().unwrap_or_default().to_lowercase();
    let by_class = || {
        let mut fitting = MODEL_TYPES.iter().filter(|name| architecture.starts_with(*name));
        fitting.next().filter(|_| model_type.is_empty()).copied()
    };
    match MODEL_TYPES.iter().copied().find(|name| *name == model_type).or_else(by_class) {
        Some("llama") => Ok(LLAMA),
        Some("qwen2") => Ok(QWEN2),
        Some("qwen3") => Ok(QWEN3),
        Some(_) if MINIMIND2_KEYS.iter().any(|key| json.get(key).is_some()) => Ok(MINIMIND2),
        Some(_) => Ok(MINIMIND3),
        None => {
            let found = if model_type.is_empty() { architecture } else { model_type };
            Err(ShapeError::Config(format!(
                "model_type is {found:?}; supported: {}",
                MODEL_TYPES.join(", ")
            )))
        }
    }
}

/// Refuses sliding-window attention, which is not supported. A window that no layer uses, or that
/// is as long as the model's longest sequence, changes nothing and is accepted.
fn check_windows(json: &Value, form: &Form, longest: i64) -> Result<(), ShapeError> {
    let first_windowed = json["max_window_layers"].as_i64();
    let is_used = match json["use_sliding_window"] {
        Value::Bool(is_used) => is_used,
        // Qwen's classes do not use the window by default; a LLaMA with a window and without
        // `use_sliding_window` is another model.
        _ => json["model_type"] == LLAMA.model_type,
    };
    let is_full = |kind: &Value| kind.as_str() == Some("full_attention");
    let layers = json["layer_types"].as_array();
    if let Some(other) = layers.and_then(|layers| layers.iter().find(|kind| !is_full(kind))) {
        return Err(unsupported(
            "layer_types",
            &json!(["…", other]),
            &[Neutral::Text("full_attention")],
        ));
    }
    let window = &json["sliding_window"];
    let is_windowed = is_used
        && layers.is_none()
        && window.as_i64().is_some_and(|window| window < longest)
        && first_windowed.is_none_or(|first| first < form.num_hidden_layers);
    if is_windowed {
        return Err(ShapeError::Config(format!(
            "sliding_window is {window}, less than max_position_embeddings {longest}; \
             sliding-window attention is not supported"
        )));
    }
    Ok(())
}

/// Refuses layers without rotary embedding. `no_rope_layers` has a 1 for each layer that has it.
fn check_rope_layers(json: &Value) -> Result<(), ShapeError> {
    match &json["no_rope_layers"] {
        Value::Null => Ok(()),
        Value::Array(layers) if layers.iter().all(|layer| layer == 1) => Ok(()),
        other => Err(ShapeError::Config(format!(
            "no_rope_layers is {}; layers without rotary embedding are not supported",
            shortened(other)
        ))),
    }
}

/// The configuration as `config.json` of its Hugging Face class.
pub(crate) fn write(config: &LmConfig) -> Value {
    let (model_type, class) = match config.family {
        LmFamily::MiniMind | LmFamily::MiniMind2 | LmFamily::MiniMind3 => {
            ("minimind", "MiniMindForCausalLM")
        }
        LmFamily::Llama if config.qk_norm => ("qwen3", "Qwen3ForCausalLM"),
        LmFamily::Llama if config.qkv_bias && !config.attention_output_bias => {
            ("qwen2", "Qwen2ForCausalLM")
        }
        LmFamily::Llama => ("llama", "LlamaForCausalLM"),
    };
    let mut tree = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim(),
        "intermediate_size": config.intermediate_size(),
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_output_bias,
        "attention_dropout": config.attention_dropout(),
    });
    if config.rope_scaling != crate::RopeScaling::None {
        tree["rope_scaling"] = config.rope_scaling.to_json();
    }
    if config.mlp_bias {
        tree["mlp_bias"] = json!(true);
    }
    let moe = &config.moe;
    match config.family {
        LmFamily::Llama if config.dropout > 0.0 => tree["dropout"] = json!(config.dropout),
        LmFamily::Llama => {}
        _ => {
            tree["dropout"] = json!(config.dropout);
            tree["use_moe"] = json!(config.use_moe);
        }
    }
    if config.family == LmFamily::MiniMind2 {
        tree["n_routed_experts"] = json!(moe.n_routed_experts);
        tree["n_shared_experts"] = json!(moe.n_shared_experts.unwrap_or(0));
        tree["num_experts_per_tok"] = json!(moe.num_experts_per_tok);
        tree["scoring_func"] = json!("softmax");
        tree["aux_loss_alpha"] = json!(moe.aux_loss_alpha);
        tree["seq_aux"] = json!(true);
        tree["norm_topk_prob"] = json!(moe.norm_topk_prob);
    } else if config.use_moe {
        tree["num_experts"] = json!(moe.n_routed_experts);
        tree["num_experts_per_tok"] = json!(moe.num_experts_per_tok);
        tree["moe_intermediate_size"] = json!(config.intermediate_size());
        tree["norm_topk_prob"] = json!(moe.norm_topk_prob);
        tree["router_aux_loss_coef"] = json!(moe.aux_loss_alpha);
    }
    tree
}
