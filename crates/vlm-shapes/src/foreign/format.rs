//! The formats of whole models, and what the file of each format says about it.

use serde_json::Value;

use crate::keys::Neutral;
use crate::{ProjectorConfig, ShapeError, VisionConfig};

/// A published format of a whole vision-language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignFormat {
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

/// The parts of a whole model besides the language model.
pub(super) struct Parts {
    pub(super) vision: VisionConfig,
    pub(super) projector: ProjectorConfig,
}

/// The keys at the top of a format's `config.json`.
pub(super) struct TopKeys {
    /// Keys that are read.
    pub(super) read: &'static [&'static str],
    /// Keys with the only supported values. A key that is left out has the format's default, which
    /// its own file checks.
    pub(super) must_be: &'static [(&'static str, &'static [Neutral])],
    /// Keys of `vision_config` that are ignored.
    pub(super) of_tower: &'static [&'static str],
}

/// The whole number `key` of an object, or `default` if it is left out.
pub(super) fn integer(json: &Value, key: &str, default: i64) -> Result<i64, ShapeError> {
    match &json[key] {
        Value::Null => Ok(default),
        value => value.as_i64().ok_or_else(|| {
            ShapeError::Config(format!("{key} is {value}; expected a whole number"))
        }),
    }
}
