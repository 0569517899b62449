//! Whole vision-language models of other programs: how their `config.json` describes the language
//! model, the vision encoder and the projector, in terms of this crate's own configurations.
//!
//! Each form of `config.json` is a [`Container`] with a file of its own. What a container cannot
//! express with the parts of this program is refused by name. The names of the tensors are not
//! here, but in `vlm-model`.

mod idefics3;
mod lfm2_vl;
mod llava;
mod nanovlm;
mod text;
mod tower;

use std::path::Path;

use serde_json::Value;

use crate::keys::{self, Neutral};
use crate::{ProjectorConfig, ShapeError, VisionConfig};

/// A published form of a whole vision-language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// LLaVA and LLaVA-1.5 (Liu et al. 2023) in Hugging Face's form, `LlavaForConditionalGeneration`.
    Llava,
    /// Idefics3 (Laurençon et al. 2024) and SmolVLM (Marafioti et al. 2025), which have the same
    /// form.
    Idefics3,
    /// LFM2-VL with one of the language models of this program.
    Lfm2Vl,
    /// The folder that nanoVLM writes, with settings named `vit_…`, `lm_…` and `mp_…`.
    NanoVlm,
}

/// The token that stands for an image in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageToken {
    /// The token with this id.
    Id(i64),
    /// The token with this spelling.
    Text(String),
}

/// The `config.json` of a whole vision-language model of another program.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignModel {
    container: Container,
    json: Value,
}

/// The parts of a container's configuration besides the language model.
struct Parts {
    vision: VisionConfig,
    projector: ProjectorConfig,
}

/// The keys at the top of a container's `config.json`.
struct TopKeys {
    /// Keys that are read.
    read: &'static [&'static str],
    /// Keys with the only supported values. A key that is left out has the container's default,
    /// which its own file checks.
    must_be: &'static [(&'static str, &'static [Neutral])],
}

/// Keys at the top of every container in Hugging Face's form.
const COMMON_KEYS: [&str; 8] = [
    "text_config", "vision_config", "image_token_id", "image_token_index", "tie_word_embeddings",
    "vocab_size", "ignore_index", "image_seq_length",
];

impl ForeignModel {
    /// The model that the content of a `config.json` describes; `None` if it is none of the
    /// containers.
    pub fn of(json: &Value) -> Option<Self> {
        let container = Container::of(json)?;
        Some(Self { container, json: json.clone() })
    }

    /// The model that `config.json` in the folder of the weights describes: `weights` is a folder
    /// or a file in it. `None` if there is no such file, or if it describes none of the
    /// containers.
    pub fn beside(weights: &Path) -> Option<Self> {
        let folder = if weights.is_dir() { weights } else { weights.parent()? };
        // A file that is damaged is reported by the readers of the parts.
        let text = std::fs::read_to_string(folder.join("config.json")).ok()?;
        Self::of(&serde_json::from_str(&text).ok()?)
    }

    /// The form of the model.
    pub fn container(&self) -> Container {
        self.container
    }

    /// The name of the form, as `model_type` spells it.
    pub fn name(&self) -> &str {
        self.json["model_type"].as_str().unwrap_or("nanoVLM")
    }

    /// The language model's configuration as a `config.json` of one of this program's families.
    ///
    /// # Errors
    /// A setting is not supported; the message names it.
    pub fn language(&self) -> Result<Value, ShapeError> {
        match self.container {
            Container::NanoVlm => nanovlm::language(&self.json),
            container => text::language(&self.json, container),
        }
    }

    /// Whether the language model's blocks have a shared expert with a gate, as Qwen2-MoE has. It
    /// is read as MiniMind2's shared expert, which has none: the gate is constant.
    pub fn has_gated_shared_expert(&self) -> bool {
        self.json["text_config"]["model_type"] == text::QWEN2_MOE
    }

    /// The vision encoder: the part of it that computes the features for the projector.
    ///
    /// # Errors
    /// The encoder is not supported.
    pub fn vision(&self) -> Result<VisionConfig, ShapeError> {
        match self.container {
            // An encoder that LLaVA's projector cannot be used with may be used without it.
            Container::Llava => llava::vision(&self.json),
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

    /// Unknown keys at the top of `config.json` that are ignored although they have a value: worth
    /// a warning.
    ///
    /// # Errors
    /// A key may change what the model computes.
    pub fn unread_keys(&self) -> Result<Vec<String>, ShapeError> {
        let TopKeys { read, must_be } = match self.container {
            Container::Llava => llava::KEYS,
            Container::Idefics3 => idefics3::KEYS,
            Container::Lfm2Vl => lfm2_vl::KEYS,
            Container::NanoVlm => nanovlm::KEYS,
        };
        let read = [read, &COMMON_KEYS].concat();
        self.json.as_object().map_or(Ok(Vec::new()), |top| keys::check_whole(top, &read, must_be))
    }

    /// The token that stands for an image; `None` if `config.json` does not name one.
    pub fn image_token(&self) -> Option<ImageToken> {
        if let Some(text) = self.json["vlm_extra_tokens"]["image_token"].as_str() {
            return Some(ImageToken::Text(text.to_owned()));
        }
        let ids = ["image_token_id", "image_token_index"];
        ids.iter().find_map(|key| self.json[*key].as_i64()).map(ImageToken::Id)
    }

    /// What a model of this form does besides what is read here, as a sentence for a warning;
    /// `None` if it is read as it is.
    pub fn difference(&self) -> Option<String> {
        match self.container {
            Container::NanoVlm => nanovlm::difference(&self.json),
            _ => None,
        }
    }

    /// How to make the tokenizer of a model whose folder has none, for a message.
    pub fn tokenizer_advice(&self) -> Option<String> {
        match self.container {
            Container::NanoVlm => Some(nanovlm::tokenizer_advice(&self.json)),
            _ => None,
        }
    }

    fn parts(&self) -> Result<Parts, ShapeError> {
        self.unread_keys()?;
        match self.container {
            Container::Llava => llava::parts(&self.json),
            Container::Idefics3 => idefics3::parts(&self.json),
            Container::Lfm2Vl => lfm2_vl::parts(&self.json),
            Container::NanoVlm => nanovlm::parts(&self.json),
        }
    }
}

impl Container {
    fn of(json: &Value) -> Option<Self> {
        match json["model_type"].as_str() {
            None if nanovlm::is_one(json) => Some(Self::NanoVlm),
            Some(_) if !json["text_config"].is_object() => None,
            Some("llava") => Some(Self::Llava),
            Some("idefics3" | "smolvlm") => Some(Self::Idefics3),
            Some("lfm2_vl") => Some(Self::Lfm2Vl),
            _ => None,
        }
    }
}

/// The whole number `key` of an object, or `default` if it is left out.
fn integer(json: &Value, key: &str, default: i64) -> Result<i64, ShapeError> {
    match &json[key] {
        Value::Null => Ok(default),
        value => value.as_i64().ok_or_else(|| {
            ShapeError::Config(format!("{key} is {value}; expected a whole number"))
        }),
    }
}

#[cfg(test)]
mod tests;
