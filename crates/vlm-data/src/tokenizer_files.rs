//! The files that a tokenizer and its chat template come in, in Hugging Face's form.

use std::path::Path;

use serde_json::Value;

use crate::error::DataError;

/// What the files say.
#[derive(Debug)]
pub(crate) struct TokenizerFiles {
    /// `tokenizer.json`, without what would change lengths behind our back.
    pub(crate) tokenizer: Value,
    /// Jinja text.
    pub(crate) chat_template: String,
    pub(crate) bos_token: Option<String>,
    pub(crate) eos_token: String,
    pub(crate) pad_token: Option<String>,
}

impl TokenizerFiles {
    pub(crate) fn read(dir: &Path) -> Result<Self, DataError> {
        let mut tokenizer = read_json(&dir.join("tokenizer.json"))?;
        if let Some(object) = tokenizer.as_object_mut() {
            object.insert("truncation".into(), Value::Null);
            object.insert("padding".into(), Value::Null);
            if let Some(processor) = object.get_mut("post_processor") {
                keep_offsets_whole(processor);
            }
        }
        let config_path = dir.join("tokenizer_config.json");
        let config = read_json(&config_path)?;
        let eos_token = special_token(&config, "eos_token").ok_or_else(|| {
            DataError::content(&config_path, "no \"eos_token\"; it is what ends an answer")
        })?;
        Ok(Self {
            tokenizer,
            chat_template: chat_template(dir, &config)?,
            bos_token: special_token(&config, "bos_token"),
            eos_token,
            pad_token: special_token(&config, "pad_token"),
        })
    }

    /// Hash of all that decides which ids a conversation gets.
    pub(crate) fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let tokenizer = self.tokenizer.to_string();
        let special = |token: &Option<String>| token.clone().unwrap_or_default();
        for part in [
            &tokenizer,
            &self.chat_template,
            &special(&self.bos_token),
            &self.eos_token,
            &special(&self.pad_token),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn read_json(path: &Path) -> Result<Value, DataError> {
    let text = std::fs::read_to_string(path).map_err(DataError::io(path, "read the tokenizer"))?;
    serde_json::from_str(&text).map_err(|e| DataError::content(path, format!("not JSON: {e}")))
}

/// A byte-level post-processor may cut white space off the tokens' offsets, and with it the start
/// of an answer. It has no influence on ids.
fn keep_offsets_whole(processor: &mut Value) {
    match processor {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                if key == "trim_offsets" {
                    *value = Value::Bool(false);
                } else {
                    keep_offsets_whole(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(keep_offsets_whole),
        _ => {}
    }
}

/// A special token is written as text or as an object with `content`.
fn special_token(config: &Value, name: &str) -> Option<String> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

fn chat_template(dir: &Path, config: &Value) -> Result<String, DataError> {
    let file = dir.join("chat_template.jinja");
    if file.is_file() {
        return std::fs::read_to_string(&file)
            .map_err(DataError::io(&file, "read the chat template"));
    }
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|item| item["name"] == "default");
        default.or(list.first())?["template"].as_str().map(str::to_owned)
    };
    match config.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(list)) => named(list),
        _ => None,
    }
    .ok_or_else(|| {
        DataError::content(
            dir,
            "no chat template: expected \"chat_template\" in tokenizer_config.json, or the file \
             chat_template.jinja; a base model's tokenizer has none, take the chat model's",
        )
    })
}
