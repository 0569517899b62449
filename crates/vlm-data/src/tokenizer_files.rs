//! Reads the files of a tokenizer and its chat template in Hugging Face's form.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::DataError;
use crate::json_file::{read_json, read_json_if_there};
use crate::limits::MAX_ADDED_TOKEN_BYTES;
use crate::template_files::chat_template;

const GENERATION_CONFIG: &str = "generation_config.json";
const EOS_TOKEN_ID: &str = "eos_token_id";

/// The names under which a template sees special tokens.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The content of the files.
#[derive(Debug)]
pub(crate) struct TokenizerFiles {
    /// `tokenizer.json`, without truncation and padding, which would change the lengths of rows.
    pub(crate) tokenizer: Value,
    /// Jinja text.
    pub(crate) chat_template: String,
    /// Each of [`SPECIAL_TOKENS`] that the tokenizer has.
    pub(crate) special_tokens: BTreeMap<String, String>,
    /// What the processor of the tokenizer's model writes around every image.
    pub(crate) image_tags: Option<ImageTags>,
    /// `eos_token_id` of `generation_config.json`: further ids that end an answer.
    pub(crate) generation_eos_ids: Vec<i64>,
}

/// What a processor writes around an image, as SmolVLM's and nanoVLM's do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageTags {
    /// The token that stands for an image.
    pub(crate) image_token: String,
    pub(crate) before: String,
    pub(crate) after: String,
}

impl ImageTags {
    /// The tags that `tokenizer_config.json` names, at its top or in one of the objects that
    /// transformers 4 and 5 write; `None` if there are none.
    fn read(config: &Value) -> Option<Self> {
        let within = ["extra_special_tokens", "model_specific_special_tokens"];
        let places = || within.iter().map(|key| &config[*key]).chain([config]);
        let token =
            |name: &str| places().find_map(|place| special_token(place, name)).unwrap_or_default();
        let (fake, global) = (token("fake_image_token"), token("global_image_token"));
        let tags = Self {
            image_token: token("image_token"),
            before: format!("{fake}{global}"),
            after: fake,
        };
        (!tags.image_token.is_empty() && !tags.before.is_empty()).then_some(tags)
    }
}

impl TokenizerFiles {
    /// Reads the files of the folder `dir`. A special token that `tokenizer_config.json` does not
    /// name is taken from `special_tokens_map.json`, else from the id in `generation_config.json`.
    pub(crate) fn read(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join("tokenizer.json");
        let mut tokenizer = read_json(&path)?;
        check_added_tokens(&path, &tokenizer)?;
        if let Some(object) = tokenizer.as_object_mut() {
            object.insert("truncation".into(), Value::Null);
            object.insert("padding".into(), Value::Null);
            if let Some(processor) = object.get_mut("post_processor") {
                keep_offsets_whole(processor);
            }
        }
        let config_path = dir.join("tokenizer_config.json");
        let config = read_json(&config_path)?;
        let map = read_json_if_there(&dir.join("special_tokens_map.json"))?;
        let generation = read_json_if_there(&dir.join(GENERATION_CONFIG))?;
        let mut special_tokens = BTreeMap::new();
        for name in SPECIAL_TOKENS {
            let token = special_token(&config, name).or_else(|| special_token(&map, name));
            let of_id =
                || find_token(&tokenizer, *ids(&generation, &format!("{name}_id")).first()?);
            if let Some(token) = token.or_else(of_id) {
                special_tokens.insert(name.to_owned(), token);
            }
        }
        if !special_tokens.contains_key("eos_token") {
            let problem = "expected \"eos_token\", the token that ends a text, here or in \
                           special_tokens_map.json, or \"eos_token_id\" in generation_config.json";
            return Err(DataError::content(&config_path, problem));
        }
        Ok(Self {
            chat_template: chat_template(dir, &config)?,
            special_tokens,
            image_tags: ImageTags::read(&config),
            generation_eos_ids: ids(&generation, EOS_TOKEN_ID),
            tokenizer,
        })
    }

    /// The token that ends a text.
    pub(crate) fn eos_token(&self) -> &str {
        self.special_tokens.get("eos_token").map_or("", String::as_str)
    }

    /// A hash of everything that decides the ids of a conversation; `supervision` describes what
    /// else decides which of them are learned.
    pub(crate) fn hash(&self, supervision: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        let tokenizer = self.tokenizer.to_string();
        let special = |name: &str| self.special_tokens.get(name).cloned().unwrap_or_default();
        let mut parts = vec![
            tokenizer,
            self.chat_template.clone(),
            special("bos_token"),
            special("eos_token"),
            special("pad_token"),
        ];
        // It is left out if empty, so that data prepared before it was included keeps its hash.
        parts.extend((!supervision.is_empty()).then(|| supervision.to_owned()));
        parts.extend(self.image_tags.as_ref().map(|tags| format!("{tags:?}")));
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// The ids that end an answer by `generation_config.json` in the folder `dir`; none if there is no
/// such file.
///
/// # Errors
/// A file that cannot be read or is not JSON.
pub(crate) fn generation_eos_ids(dir: &Path) -> Result<Vec<i64>, DataError> {
    Ok(ids(&read_json_if_there(&dir.join(GENERATION_CONFIG))?, EOS_TOKEN_ID))
}

/// The token with the number `id` of the tokenizer in the folder `dir`, if it has one.
///
/// # Errors
/// `tokenizer.json` cannot be read or is not JSON.
pub fn token_of_id(dir: &Path, id: i64) -> Result<Option<String>, DataError> {
    Ok(find_token(&read_json(&dir.join("tokenizer.json"))?, id))
}

/// An id or a list of ids.
fn ids(config: &Value, name: &str) -> Vec<i64> {
    match &config[name] {
        Value::Array(list) => list.iter().filter_map(Value::as_i64).collect(),
        id => id.as_i64().into_iter().collect(),
    }
}

fn find_token(tokenizer: &Value, id: i64) -> Option<String> {
    let added = tokenizer["added_tokens"].as_array()?;
    let of_added = added.iter().find(|token| token["id"] == id);
    if let Some(token) = of_added {
        return token["content"].as_str().map(str::to_owned);
    }
    let vocab = tokenizer["model"]["vocab"].as_object()?;
    vocab.iter().find(|(_, of)| **of == id).map(|(token, _)| token.clone())
}

/// Checks the lengths of the tokens that are added to the vocabulary.
fn check_added_tokens(path: &Path, tokenizer: &Value) -> Result<(), DataError> {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let longest = added.filter_map(|token| token["content"].as_str()).map(str::len).max();
    match longest.filter(|&bytes| bytes > MAX_ADDED_TOKEN_BYTES) {
        Some(bytes) => Err(DataError::content(
            path,
            format!("an added token has {bytes} bytes; the limit is {MAX_ADDED_TOKEN_BYTES}"),
        )),
        None => Ok(()),
    }
}

/// Turns off `trim_offsets`, which does not change the ids: a byte-level post-processor with it
/// cuts white space off the tokens' offsets, and with it the start of an answer.
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

/// A special token written as text or as an object with `content`.
fn special_token(config: &Value, name: &str) -> Option<String> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}
