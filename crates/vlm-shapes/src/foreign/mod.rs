//! Whole vision-language models of other programs: how their `config.json` describes the language
//! model, the vision encoder and the projector, in terms of this crate's own configurations.
//!
//! Each [`ForeignFormat`] has a file of its own. What cannot be computed with the parts of this
//! program is refused by name. The names of the tensors are not here, but in `vlm-model`.

mod format;
mod idefics3;
mod lfm2_vl;
mod llava;
mod nanovlm;
mod text;
mod tower;

use std::path::Path;

use serde_json::Value;

pub use self::format::ForeignFormat;
use self::format::{Parts, TopKeys};
use crate::keys;
use crate::vision::check_keys;
use crate::{ProjectorConfig, ShapeError, VisionConfig};

/// The `config.json` of a whole vision-language model of another program.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignModel {
    format: ForeignFormat,
    json: Value,
}

/// Keys at the top of every format of transformers.
const COMMON_KEYS: [&str; 8] = [
    "text_config", "vision_config", "image_token_id", "image_token_index", "tie_word_embeddings",
    "vocab_size", "ignore_index", "image_seq_length",
];

impl ForeignModel {
    /// The model that the content of a `config.json` describes; `None` if it has none of the
    /// formats.
    pub fn of(json: &Value) -> Option<Self> {
        let format = format_of(json)?;
        Some(Self { format, json: json.clone() })
    }

    /// The model that `config.json` in the folder of the weights describes: `weights` is a folder
    /// or a file in it. `None` if there is no such file, or if it has none of the formats.
    pub fn beside(weights: &Path) -> Option<Self> {
        let folder = if weights.is_dir() { weights } else { weights.parent()? };
        // A file that is damaged is reported by the readers of the parts.
        let text = std::fs::read_to_string(folder.join("config.json")).ok()?;
        Self::of(&serde_json::from_str(&text).ok()?)
    }

    /// The format of the model.
    pub fn format(&self) -> ForeignFormat {
        self.format
    }

    /// The name of the format, as `model_type` spells it.
    pub fn name(&self) -> &str {
        self.json["model_type"].as_str().unwrap_or("nanoVLM")
    }

    /// The language model's configuration as a `config.json` of one of this program's families.
    ///
    /// # Errors
    /// A setting is not supported; the message names it.
    pub fn language(&self) -> Result<Value, ShapeError> {
        match self.format {
            ForeignFormat::NanoVlm => nanovlm::language(&self.json),
            format => text::language(&self.json, format),
        }
    }

    /// Number of MiniMind2's shared experts that the gated shared expert of a block is read as, if
    /// the language model has one, as Qwen2-MoE has. MiniMind2's have no gate: it must be constant.
    ///
    /// # Errors
    /// As [`Self::language`].
    pub fn gated_shared_experts(&self) -> Result<Option<i64>, ShapeError> {
        match self.json["text_config"]["model_type"] == text::QWEN2_MOE {
            true => Ok(self.language()?["n_shared_experts"].as_i64()),
            false => Ok(None),
        }
    }

    /// The vision encoder: the part of it that computes the features for the projector.
    ///
    /// # Errors
    /// The encoder is not supported.
    pub fn vision(&self) -> Result<VisionConfig, ShapeError> {
        match self.format {
            // An encoder that LLaVA's projector cannot be used with may be used without it.
            ForeignFormat::Llava => llava::vision(&self.json),
            _ => Ok(self.parts()?.vision),
        }
    }

    /// The projector between the vision encoder and the language model.
    ///
    /// # Errors
    /// The encoder, the projector, or what is between them is not supported.
    pub fn projector(&self) -> Result<ProjectorConfig, ShapeError> {
        Ok(self.parts()?.projector)
    }

    /// Unknown keys at the top of `config.json` or in its `vision_config` that are ignored although
    /// they have a value: worth a warning.
    ///
    /// # Errors
    /// A key may change what the model computes.
    pub fn unread_keys(&self) -> Result<Vec<String>, ShapeError> {
        let TopKeys { read, must_be, of_tower } = self.keys();
        let read = [read, &COMMON_KEYS].concat();
        let Some(top) = self.json.as_object() else { return Ok(Vec::new()) };
        let mut unread = keys::check_whole(top, &read, must_be)?;
        let mut tower = top.get("vision_config").cloned().unwrap_or_default();
        if let Some(tower) = tower.as_object_mut() {
            tower.retain(|key, _| key != "model_type" && !of_tower.contains(&key.as_str()));
        }
        // A key that is not supported is an error where the vision encoder is used.
        let of_tower = check_keys(&tower).unwrap_or_default();
        unread.extend(of_tower.into_iter().map(|key| format!("vision_config.{key}")));
        Ok(unread)
    }

    fn keys(&self) -> TopKeys {
        match self.format {
            ForeignFormat::Llava => llava::KEYS,
            ForeignFormat::Idefics3 => idefics3::KEYS,
            ForeignFormat::Lfm2Vl => lfm2_vl::KEYS,
            ForeignFormat::NanoVlm => nanovlm::KEYS,
        }
    }

    /// The id of the token that stands for an image; `None` if `config.json` has none.
    pub fn image_token_id(&self) -> Option<i64> {
        let names = ["image_token_id", "image_token_index"];
        names.iter().find_map(|name| self.json[*name].as_i64())
    }

    /// What a model of this format does besides what is read here, as a sentence for a warning;
    /// `None` if it is read as it is.
    pub fn difference(&self) -> Option<String> {
        match self.format {
            ForeignFormat::NanoVlm => nanovlm::difference(&self.json),
            _ => None,
        }
    }

    /// How to make the tokenizer of a model whose folder has none, for a message.
    pub fn tokenizer_advice(&self) -> Option<String> {
        match self.format {
            ForeignFormat::NanoVlm => Some(nanovlm::tokenizer_advice(&self.json)),
            _ => None,
        }
    }

    fn parts(&self) -> Result<Parts, ShapeError> {
        self.unread_keys()?;
        match self.format {
            ForeignFormat::Llava => llava::parts(&self.json),
            ForeignFormat::Idefics3 => idefics3::parts(&self.json),
            ForeignFormat::Lfm2Vl => lfm2_vl::parts(&self.json),
            ForeignFormat::NanoVlm => nanovlm::parts(&self.json),
        }
    }
}

/// The format of a `config.json`; `None` if it has none of the formats.
fn format_of(json: &Value) -> Option<ForeignFormat> {
    match json["model_type"].as_str() {
        None if nanovlm::is_one(json) => Some(ForeignFormat::NanoVlm),
        Some(_) if !json["text_config"].is_object() => None,
        Some("llava") => Some(ForeignFormat::Llava),
        Some("idefics3" | "smolvlm") => Some(ForeignFormat::Idefics3),
        Some("lfm2_vl") => Some(ForeignFormat::Lfm2Vl),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
