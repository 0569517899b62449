//! Checks the keys of a `config.json` that no reader of this crate uses. Metadata is ignored; a key
//! that could change what the model computes is refused.
//!
//! A key that is in none of the lists is treated by the first rule that applies:
//! 1. A null, false or empty value is ignored.
//! 2. A name with a word of [`OTHER_PARTS`] is ignored.
//! 3. A name with a word of [`ARITHMETIC`] is refused.
//! 4. A name with a word of [`BOOKKEEPING`] is ignored.
//! 5. A string is ignored with a warning.
//! 6. Any other value is refused.

use serde_json::{Map, Value};

use crate::ShapeError;

/// Keys that every Hugging Face configuration may have and that do not change what it computes.
const HARMLESS: [&str; 85] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_id",
    "bos_token_id",
    "chunk_size_feed_forward",
    "context_length",
    "custom_pipelines",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_id",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "flash_attn",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "language",
    "length_penalty",
    "max_length",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "max_window_layers",
    "min_length",
    "model_type",
    "n_ctx",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_id",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "program",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "router_jitter_noise",
    "run",
    "sep_token_id",
    "seq_len",
    "seq_length",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
];

/// Keys with the only values that are supported, because any other value changes what the model
/// computes. Null is always accepted.
const MUST_BE: [(&str, &[Neutral]); 45] = [
    ("add_cross_attention", &[Neutral::False]),
    ("alibi", &[Neutral::False]),
    ("attention_multiplier", &[]),
    ("attn_logit_softcapping", &[Neutral::Number(0.0)]),
    ("causal", &[Neutral::True]),
    ("clip_qkv", &[]),
    ("cross_attention_hidden_size", &[]),
    ("dim_model_base", &[]),
    ("embedding_multiplier", &[Neutral::Number(1.0)]),
    ("embedding_scale", &[Neutral::Number(1.0)]),
    ("final_logit_softcapping", &[Neutral::Number(0.0)]),
    ("hidden_act", &[Neutral::Text("silu"), Neutral::Text("swish")]),
    ("hidden_activation", &[Neutral::Text("silu"), Neutral::Text("swish")]),
    ("inference_rope_scaling", &[Neutral::False]),
    ("is_causal", &[Neutral::True]),
    ("is_encoder_decoder", &[Neutral::False]),
    ("logit_scale", &[Neutral::Number(1.0)]),
    ("logits_scaling", &[Neutral::Number(1.0)]),
    ("no_rope_layer_interval", &[Neutral::Number(0.0)]),
    ("num_mtp_modules", &[Neutral::Number(0.0)]),
    ("num_nextn_predict_layers", &[Neutral::Number(0.0)]),
    ("partial_rotary_factor", &[Neutral::Number(1.0)]),
    ("pruned_heads", &[Neutral::Empty]),
    ("qk_layernorm", &[Neutral::False]),
    ("qk_norm", &[Neutral::False]),
    ("qkv_bias", &[Neutral::False]),
    ("quantization", &[]),
    ("quantization_config", &[]),
    ("query_pre_attn_scalar", &[]),
    ("residual_multiplier", &[Neutral::Number(1.0)]),
    ("residual_scale", &[Neutral::Number(1.0)]),
    ("rope_interleave", &[Neutral::False]),
    ("rope_interleaved", &[Neutral::False]),
    ("rotary_pct", &[Neutral::Number(1.0)]),
    ("scale_attn_weights", &[Neutral::True]),
    ("scale_depth", &[]),
    ("scale_emb", &[Neutral::Number(1.0)]),
    ("scoring_func", &[Neutral::Text("softmax")]),
    ("use_alibi", &[Neutral::False]),
    ("use_mup", &[Neutral::False]),
    ("use_parallel_residual", &[Neutral::False]),
    ("use_qk_norm", &[Neutral::False]),
    ("use_rms_norm", &[Neutral::True]),
    ("use_rope", &[Neutral::True]),
    ("use_rotary_emb", &[Neutral::True]),
];

/// Words in the names of keys that may change what the model computes.
const ARITHMETIC: [&str; 59] = [
    "act", "activation", "adapter", "alibi", "attention", "attn", "bias", "cap", "causal", "conv",
    "cross", "decoder", "depth", "dropout", "embedding", "embeddings", "encoder", "eps", "epsilon",
    "expert", "experts", "factor", "ffn", "gate", "gating", "glu", "head", "heads", "hidden", "kv",
    "layer", "layernorm", "layers", "logit", "logits", "lora", "mlp", "moe", "mtp", "multiplier",
    "mup", "nope", "norm", "parallel", "position", "positions", "qk", "qkv", "quant",
    "quantization", "residual", "rope", "rotary", "router", "scale", "scaling", "softcap",
    "softcapping", "window",
];

/// Words in the names of keys that hold metadata: who made the file, how the model was trained.
const BOOKKEEPING: [&str; 55] = [
    "accumulation", "adam", "author", "batch", "batches", "cache", "class", "commit", "created",
    "data", "dataset", "date", "dtype", "epoch", "epochs", "eval", "format", "framework", "gpu",
    "grad", "hash", "hub", "id", "ids", "initializer", "label", "labels", "learning", "license",
    "log", "lr", "model", "name", "optim", "optimizer", "path", "processor", "program",
    "projection", "revision", "save", "seed", "source", "step", "steps", "tag", "tags", "time",
    "token", "tokenizer", "tokens", "train", "training", "url", "version",
];

/// Words in the names of keys that belong to another part of a vision-language model.
const OTHER_PARTS: [&str; 9] =
    ["audio", "image", "images", "mm", "projector", "ve", "video", "vision", "visual"];

/// A value with which a key changes nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Neutral {
    True,
    False,
    Number(f64),
    Text(&'static str),
    /// An empty list or object.
    Empty,
}

impl Neutral {
    pub(crate) fn is(self, value: &Value) -> bool {
        match self {
            Self::True => value == &Value::Bool(true),
            Self::False => value == &Value::Bool(false),
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Text(text) => value.as_str() == Some(text),
            Self::Empty => is_empty(value),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::True => "true".into(),
            Self::False => "false".into(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => format!("{text:?}"),
            Self::Empty => "empty".into(),
        }
    }
}

/// Checks every key that is not in `read`, the keys that the caller reads itself. The rules in
/// `must_be` take precedence over those of this file.
///
/// Returns the unknown keys that are ignored although they have a value.
///
/// # Errors
/// A key is not supported; the message gives its value and the supported ones.
pub(crate) fn check(
    config: &Map<String, Value>,
    read: &[&str],
    must_be: &[(&str, &[Neutral])],
) -> Result<Vec<String>, ShapeError> {
    check_beside(config, read, must_be, &OTHER_PARTS)
}

/// As [`check`], for the configuration of a whole vision-language model: it has no other parts, so
/// that no key is ignored because of rule 2.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_whole(
    config: &Map<String, Value>,
    read: &[&str],
    must_be: &[(&str, &[Neutral])],
) -> Result<Vec<String>, ShapeError> {
    check_beside(config, read, must_be, &[])
}

fn check_beside(
    config: &Map<String, Value>,
    read: &[&str],
    must_be: &[(&str, &[Neutral])],
    other_parts: &[&str],
) -> Result<Vec<String>, ShapeError> {
    let mut unknown = Vec::new();
    for (key, value) in config {
        if read.contains(&key.as_str()) || value.is_null() {
            continue;
        }
        let rule = must_be.iter().chain(&MUST_BE).find(|(name, _)| name == key);
        if let Some((_, neutral)) = rule {
            if !neutral.iter().any(|neutral| neutral.is(value)) {
                return Err(unsupported(key, value, neutral));
            }
            continue;
        }
        if HARMLESS.contains(&key.as_str()) {
            continue;
        }
        let is_off = value == &Value::Bool(false) || is_empty(value);
        let words: Vec<String> = key.split(['_', '.', '-']).map(str::to_lowercase).collect();
        let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
        if is_off || has(other_parts) || !has(&ARITHMETIC) && has(&BOOKKEEPING) {
            continue;
        }
        if has(&ARITHMETIC) || !value.is_string() {
            return Err(ShapeError::Config(format!(
                "{key} is {}, an unknown setting that may change what the model computes; \
                 remove the key from config.json if it does not",
                shortened(value)
            )));
        }
        unknown.push(key.clone());
    }
    Ok(unknown)
}

/// The error for a key whose value is not among the supported ones, `neutral`.
pub(crate) fn unsupported(key: &str, value: &Value, neutral: &[Neutral]) -> ShapeError {
    let supported: Vec<String> = neutral.iter().map(|neutral| neutral.describe()).collect();
    let expected = match supported.as_slice() {
        [] => "expected a model without this key".to_owned(),
        supported => format!("expected {}", supported.join(" or ")),
    };
    ShapeError::Config(format!("{key} is {}, which is not supported; {expected}", shortened(value)))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// The first 80 characters of a value's JSON, for a message.
pub(crate) fn shortened(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_one(key: &str, value: Value) -> Result<Vec<String>, String> {
        let config = Map::from_iter([(key.to_owned(), value)]);
        check(&config, &["hidden_size"], &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_of_metadata_are_ignored() {
        for (key, value) in [
            ("hidden_size", json!(3)),
            ("transformers_version", json!("6.0")),
            ("safetensors_version", json!(2)),
            ("learning_rate", json!(1e-4)),
            ("max_seq_len", json!(8192)),
            ("num_training_steps", json!(1000)),
            ("unsloth_version", json!("2026.1")),
            ("image_ids", json!([12])),
            ("mm_hidden_size", json!(1024)),
            ("grad_clip", json!(1.0)),
            ("sep_token_ids", json!([1, 2])),
            ("clip_qkv", Value::Null),
            ("pruned_heads", json!({})),
            ("some_new_switch", json!(false)),
            ("use_rope", json!(true)),
            ("logits_scaling", json!(1)),
        ] {
            assert_eq!(check_one(key, value), Ok(vec![]), "{key}");
        }
        assert_eq!(check_one("comment", json!("mine")), Ok(vec!["comment".to_owned()]));
    }

    #[test]
    fn keys_that_may_change_the_computation_are_refused_by_name() {
        for (key, value) in [
            ("clip_qkv", json!(8.0)),
            ("partial_rotary_factor", json!(0.5)),
            ("logits_scaling", json!(8)),
            ("embedding_multiplier", json!(12.0)),
            ("final_logit_softcapping", json!(30.0)),
            ("quantization_config", json!({"bits": 4})),
            ("use_rope", json!(false)),
            ("qk_norm", json!(true)),
            ("attention_temperature", json!(2.0)),
            ("norm_type", json!("layernorm")),
            ("mlp_act", json!("relu")),
            ("frobnication", json!(0.5)),
            ("frobnicate", json!(true)),
        ] {
            let error = check_one(key, value).unwrap_err();
            assert!(error.starts_with(&format!("{key} is ")), "{error}");
        }
    }
}
