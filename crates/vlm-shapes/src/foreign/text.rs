//! The language model within a whole model, `text_config`: the keys that such a file leaves out are
//! filled in with the defaults of transformers' class, and experts that this program computes in
//! MiniMind's form are rewritten to it.

use serde_json::{Map, Value, json};

use super::format::ForeignFormat;
use crate::ShapeError;
use crate::keys::{Neutral, unsupported};

/// `model_type` of Qwen2's mixture of experts.
pub(super) const QWEN2_MOE: &str = "qwen2_moe";
/// `model_type` of Qwen3's mixture of experts.
const QWEN3_MOE: &str = "qwen3_moe";

/// The language models that are read.
const SUPPORTED: [&str; 5] = ["llama", "qwen2", "qwen3", QWEN2_MOE, QWEN3_MOE];

/// Keys of the training code of Idefics3 and SmolVLM that no longer have an effect: noise in
/// training, and settings of a resampler that `use_resampler` turns on.
const WITHOUT_EFFECT: [&str; 4] =
    ["neftune_noise_alpha", "pixel_shuffle_factor", "perceiver_config", "_flash_attn_2_enabled"];

/// The language model of a whole model in the form of its own `config.json`.
///
/// # Errors
/// A language model that is not supported, or experts that cannot be computed exactly.
pub(super) fn language(json: &Value, format: ForeignFormat) -> Result<Value, ShapeError> {
    let mut text = json["text_config"].as_object().cloned().unwrap_or_default();
    let default_type = if format == ForeignFormat::Lfm2Vl { "lfm2" } else { "llama" };
    let model_type = text.get("model_type").and_then(Value::as_str);
    let model_type = model_type.unwrap_or(default_type).to_owned();
    if !SUPPORTED.contains(&model_type.as_str()) {
        return Err(ShapeError::Config(format!(
            "model_type of text_config is {model_type:?}, a language model that is not supported; \
             supported: {}",
            SUPPORTED.join(", ")
        )));
    }
    text.insert("model_type".into(), json!(model_type));
    if format == ForeignFormat::Idefics3 {
        text.retain(|key, _| !WITHOUT_EFFECT.contains(&key.as_str()));
        fill(&mut text, "rms_norm_eps", json!(1e-5));
    }
    let defaults = match model_type.as_str() {
        "qwen2" | "qwen3" => json!({
            "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32,
        }),
        "llama" => json!({
            "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32,
        }),
        _ => json!({}),
    };
    for (key, value) in defaults.as_object().into_iter().flatten() {
        fill(&mut text, key, value.clone());
    }
    // transformers writes the key at either place, or at both.
    let is_tied = |tie: Option<&Value>| tie.and_then(Value::as_bool);
    let (within, top) = (is_tied(text.get("tie_word_embeddings")), &json["tie_word_embeddings"]);
    let top = is_tied(Some(top)).or(is_tied(Some(&json["tie_embedding"])));
    let default = format == ForeignFormat::Lfm2Vl;
    let tied = within == Some(true) || top.unwrap_or(default && within.is_none());
    text.insert("tie_word_embeddings".into(), json!(tied));
    if [QWEN2_MOE, QWEN3_MOE].contains(&model_type.as_str()) {
        text = as_minimind(text, model_type == QWEN2_MOE)?;
    }
    Ok(Value::Object(text))
}

fn fill(text: &mut Map<String, Value>, key: &str, default: Value) {
    let value = text.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = default;
    }
}

/// Qwen's experts as MiniMind's: those of Qwen3 are the same as `minimind-3`'s, and those of Qwen2
/// are MiniMind2's if the gate of the shared expert is constant, which `vlm-model` checks.
fn as_minimind(
    mut text: Map<String, Value>,
    is_qwen2: bool,
) -> Result<Map<String, Value>, ShapeError> {
    let every_block: [(&str, &[Neutral]); 3] = [
        ("decoder_sparse_step", &[Neutral::Number(1.0)]),
        ("mlp_only_layers", &[Neutral::Empty]),
        ("qkv_bias", &[Neutral::True]),
    ];
    for (key, supported) in every_block {
        let value = text.remove(key).unwrap_or_default();
        if !value.is_null() && !supported.iter().any(|neutral| neutral.is(&value)) {
            return Err(unsupported(key, &value, supported));
        }
    }
    // The name in transformers 5 of the number of Qwen3's experts.
    if let Some(count) = text.remove("num_local_experts") {
        fill(&mut text, "num_experts", count);
    }
    let required = [
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "num_experts", "num_experts_per_tok", "moe_intermediate_size", "vocab_size",
    ];
    if let Some(key) = required.iter().find(|key| !text.contains_key(**key)) {
        return Err(ShapeError::Config(format!("text_config has no {key}")));
    }
    fill(&mut text, "norm_topk_prob", json!(false));
    fill(&mut text, "rms_norm_eps", json!(1e-6));
    fill(&mut text, "router_aux_loss_coef", json!(1e-3));
    fill(&mut text, "max_position_embeddings", json!(32768));
    if !text.contains_key("rope_parameters") {
        fill(&mut text, "rope_theta", json!(1e4));
    }
    if is_qwen2 {
        let num_shared = num_shared_experts(&mut text)?;
        if text["norm_topk_prob"] == true && text["num_experts_per_tok"] == 1 {
            return Err(ShapeError::Config(
                "norm_topk_prob is true with one expert per token, which is not supported for \
                 qwen2_moe"
                    .into(),
            ));
        }
        let experts = text.remove("num_experts").unwrap_or_default();
        text.insert("n_routed_experts".into(), experts);
        text.insert("n_shared_experts".into(), json!(num_shared));
        let coefficient = text.remove("router_aux_loss_coef").unwrap_or_default();
        text.insert("aux_loss_alpha".into(), coefficient);
    }
    text.insert("model_type".into(), json!("minimind"));
    text.insert("use_moe".into(), json!(true));
    Ok(text)
}

/// Removes the width of Qwen2's shared expert, and returns the number of MiniMind2's shared experts
/// that are as wide together.
fn num_shared_experts(text: &mut Map<String, Value>) -> Result<i64, ShapeError> {
    let shared = text.remove("shared_expert_intermediate_size").unwrap_or_default();
    let width = text["moe_intermediate_size"].as_i64().unwrap_or(0).max(1);
    let shared = shared.as_i64().unwrap_or(width);
    if shared < 1 || shared % width != 0 {
        return Err(ShapeError::Config(format!(
            "shared_expert_intermediate_size is {shared}; expected a multiple of \
             moe_intermediate_size {width}"
        )));
    }
    Ok(shared / width)
}
