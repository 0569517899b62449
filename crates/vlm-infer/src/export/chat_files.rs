//! The tokenizer of an exported container, with a token of its own for images.
//!
//! In our prompts an image is a run of an ordinary token, such as MiniMind's `@`. In transformers
//! every token with the id of the image token is a place for image features, so `@` in a text would
//! be one, too: the container gets a special token instead.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::parts::Parts;
use crate::InferError;
use crate::json_file::{read_json, write_json};

/// The image token that is added to tokenizers without a special token for images.
const IMAGE_TOKEN: &str = "<image>";

/// Writes a list of content parts as text, which is what most chat templates of language models
/// take. An image part becomes the image token and a line break, as in training.
const FLATTEN_PARTS: &str = "\
{%- set flat = namespace(messages=[]) -%}\
{%- for message in messages -%}\
{%- if message['content'] is string -%}\
{%- set flat.messages = flat.messages + [message] -%}\
{%- else -%}\
{%- set joined = namespace(text='') -%}\
{%- for part in message['content'] -%}\
{%- if part['type'] == 'text' -%}\
{%- set joined.text = joined.text + part['text'] -%}\
{%- else -%}\
{%- set joined.text = joined.text + 'IMAGE_TOKEN\\n' -%}\
{%- endif -%}\
{%- endfor -%}\
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': CONTENT}] -%}\
{%- endif -%}\
{%- endfor -%}\
{%- set messages = flat.messages -%}";

/// The token that stands for one feature of an image.
#[derive(Debug, Clone)]
pub(super) struct ImageToken {
    pub(super) text: String,
    pub(super) id: i64,
}

/// The contents of the tokenizer's files.
pub(super) struct ChatFiles {
    pub(super) image: ImageToken,
    tokenizer: Value,
    config: Value,
    template: String,
}

impl ChatFiles {
    /// The files for a container. `empty_tokens` names special tokens that the container's
    /// processor writes around images; ours writes nothing, so they are empty.
    ///
    /// # Errors
    /// The tokenizer's files cannot be read.
    pub(super) fn new(parts: &Parts, empty_tokens: &[&str]) -> Result<Self, InferError> {
        let folder = &parts.tokenizer_folder;
        let mut tokenizer = parts.tokenizer_json()?;
        let image = image_token(parts, &tokenizer);
        add_special_token(&mut tokenizer, &image);
        drop_added_tokens_of_post_processor(&mut tokenizer);
        let template = match parts.tokenizer.content_parts_image() {
            Some(_) => parts.tokenizer.chat_template().to_owned(),
            None => {
                let content = match parts.tokenizer.takes_text_part() {
                    true => "[{'type': 'text', 'text': joined.text}]",
                    false => "joined.text",
                };
                FLATTEN_PARTS.replace("IMAGE_TOKEN", &image.text).replace("CONTENT", content)
                    + parts.tokenizer.chat_template()
            }
        };
        let path = folder.join("tokenizer_config.json");
        let mut config = read_json(&path)?;
        let Some(map) = config.as_object_mut() else {
            return Err(InferError::at(&path, "expected a JSON object"));
        };
        describe(map, parts, &image, empty_tokens);
        map.insert("chat_template".into(), json!(template));
        Ok(Self { image, tokenizer, config, template })
    }

    /// Writes the files to `folder`.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub(super) fn write(&self, folder: &Path) -> Result<(), InferError> {
        write_json(&folder.join("tokenizer.json"), &self.tokenizer)?;
        write_json(&folder.join("tokenizer_config.json"), &self.config)?;
        let path = folder.join("chat_template.jinja");
        fs::write(&path, &self.template).map_err(InferError::io(&path, "write it"))
    }
}

/// The special token that the tokenizer has for images, else a new one.
fn image_token(parts: &Parts, tokenizer: &Value) -> ImageToken {
    let opened = &parts.tokenizer;
    let placeholder = opened.placeholder().token();
    let added = tokenizer["added_tokens"].as_array();
    let is_special = |text: &str| {
        added.is_some_and(|added| {
            added.iter().any(|token| token["content"] == text && token["special"] == true)
        })
    };
    let text = match opened.content_parts_image() {
        // The template itself writes the token.
        Some(text) => text,
        None if is_special(placeholder) => placeholder,
        None => IMAGE_TOKEN,
    };
    let id = opened.token_to_id(text).unwrap_or(opened.vocab_size() as i64);
    ImageToken { text: text.to_owned(), id }
}

/// Makes the image token a special token of `tokenizer.json`.
fn add_special_token(tokenizer: &mut Value, image: &ImageToken) {
    if !tokenizer["added_tokens"].is_array() {
        tokenizer["added_tokens"] = json!([]);
    }
    let Some(added) = tokenizer["added_tokens"].as_array_mut() else { return };
    if let Some(token) = added.iter_mut().find(|token| token["content"] == image.text.as_str()) {
        token["special"] = json!(true);
        return;
    }
    added.push(json!({
        "id": image.id, "content": image.text, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true,
    }));
}

/// Removes a post-processor that adds tokens: in training the chat template alone writes them.
fn drop_added_tokens_of_post_processor(tokenizer: &mut Value) {
    if !matches!(tokenizer["post_processor"]["type"].as_str(), None | Some("ByteLevel")) {
        tokenizer["post_processor"] = Value::Null;
    }
}

/// Fills in `tokenizer_config.json`.
fn describe(
    config: &mut Map<String, Value>,
    parts: &Parts,
    image: &ImageToken,
    empty_tokens: &[&str],
) {
    for (name, token) in parts.tokenizer.special_tokens() {
        config.insert(name.clone(), json!(token));
    }
    for key in ["add_bos_token", "add_eos_token"] {
        if config.contains_key(key) {
            config.insert(key.into(), json!(false));
        }
    }
    // The list is written by transformers 4 and earlier, the object is read by all versions that
    // have these containers.
    let mut extra = match config.remove("extra_special_tokens") {
        Some(Value::Object(extra)) => extra,
        _ => Map::new(),
    };
    extra.insert("image_token".into(), json!(image.text));
    for name in empty_tokens {
        extra.insert((*name).to_owned(), json!(""));
    }
    config.insert("extra_special_tokens".into(), Value::Object(extra));
    let decoder = config.entry("added_tokens_decoder").or_insert_with(|| json!({}));
    let described = json!({
        "content": image.text, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    if let Some(decoder) = decoder.as_object_mut() {
        decoder.insert(image.id.to_string(), described);
    }
    config.insert("model_input_names".into(), json!(["input_ids", "attention_mask"]));
    config.entry("tokenizer_class").or_insert_with(|| json!("PreTrainedTokenizerFast"));
    config.remove("processor_class");
}
