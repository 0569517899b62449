//! The parts of a vision-language model in the form that the containers share.

use std::path::Path;

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use vlm_model::detect::projector_config;
use vlm_model::part_files::open_vision_encoder_as;
use vlm_model::weights::Weights;
use vlm_model::{ProjectorConfig, ProjectorKind, VisionConfig};

use super::chat_files::ChatFiles;
use super::container::Container;
use super::language_model::{Tensors, extend_vocabulary, transformers_tensors};
use super::parts::Parts;
use crate::InferError;
use crate::preprocessor::image_processor;

/// The parts of a vision-language model in the form that the containers for transformers share.
pub(super) struct Joined<'a> {
    pub(super) parts: &'a Parts,
    pub(super) vision: &'a VisionConfig,
    pub(super) projector: ProjectorConfig,
    pub(super) encoder: Weights,
    /// The language model's configuration, with token ids and the extended vocabulary.
    pub(super) text_config: Value,
    /// The language model's tensors, with the extended vocabulary.
    pub(super) lm_tensors: Tensors,
    /// The settings of the image preprocessing.
    pub(super) preprocessing: Value,
    /// Id of the image token.
    pub(super) image_token_id: i64,
    /// The image token.
    pub(super) image_token: String,
}

/// What is different in each container for transformers.
pub(super) struct Folder {
    pub(super) config: Value,
    pub(super) tensors: Tensors,
    pub(super) preprocessor: Value,
    pub(super) processor: Value,
}

impl Joined<'_> {
    /// Tensor `name` of the vision encoder.
    pub(super) fn encoder_tensor(&self, name: &str) -> Result<Tensor, InferError> {
        Ok(self.encoder.get(name)?)
    }

    /// Tensor `name` of the projector, without its prefix.
    pub(super) fn projector_tensor(&self, name: &str) -> Result<Tensor, InferError> {
        Ok(self.parts.weights.get(&format!("{}.{name}", vlm_shapes::PROJECTOR_SCOPE))?)
    }

    /// The tensors of the encoder, with `prefix` in front of `vision_model.`.
    pub(super) fn encoder_tensors(&self, prefix: &str) -> Result<Tensors, InferError> {
        let tensors = self.vision.tensors().into_iter();
        tensors
            .map(|tensor| {
                let value = self.encoder_tensor(&tensor.name)?;
                Ok((format!("{prefix}{}", tensor.name), value))
            })
            .collect()
    }

    /// The language model's tensors under `scope` in place of `model`; the output embeddings are
    /// under `head`.
    pub(super) fn lm_tensors_under(&self, scope: &str, head: &str) -> Tensors {
        let renamed = |name: &str| match name.strip_prefix("model.") {
            Some(rest) => format!("{scope}.{rest}"),
            None => format!("{head}{name}"),
        };
        self.lm_tensors.iter().map(|(name, t)| (renamed(name), t.shallow_clone())).collect()
    }

    /// The keys of `config.json` that all containers have.
    pub(super) fn common_config(&self, model_type: &str, class: &str, vision: Value) -> Value {
        let mut tree = json!({
            "architectures": [class],
            "model_type": model_type,
            "image_token_id": self.image_token_id,
            "image_token_index": self.image_token_id,
            "text_config": self.text_config,
            "vision_config": vision,
            "torch_dtype": self.parts.config["torch_dtype"],
        });
        for key in ["tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"] {
            if !self.text_config[key].is_null() {
                tree[key] = self.text_config[key].clone();
            }
        }
        tree
    }
}

/// Brings the parts of a vision-language model into the form that the containers share.
///
/// # Errors
/// No container holds the model; a part that cannot be read.
pub(super) fn join<'a>(
    parts: &'a Parts,
    vision_folder: &Path,
    vision: &'a VisionConfig,
    kind: ProjectorKind,
    container: Container,
) -> Result<(Joined<'a>, ChatFiles), InferError> {
    let empty_tokens: &[&str] = match container {
        Container::Llava | Container::Gguf => &[],
        Container::SmolVlm => &["fake_image_token", "global_image_token"],
        Container::Lfm2Vl => &["image_start_token", "image_end_token", "image_thumbnail"],
    };
    let chat = ChatFiles::new(parts, empty_tokens)?;
    let mut text_config = parts.lm.to_transformers_json().map_err(|error| {
        InferError::unusable(format!("no container holds this model exactly: {error}"))
    })?;
    let mut lm_tensors = transformers_tensors(&parts.lm, &parts.weights)?;
    let vocab_size = parts.lm.vocab_size.max(chat.image.id + 1);
    extend_vocabulary(&mut lm_tensors, vocab_size, parts.tokenizer.image_token_id())?;
    text_config["vocab_size"] = json!(vocab_size);
    text_config["eos_token_id"] = json!(parts.tokenizer.eos_token_id());
    text_config["pad_token_id"] = json!(parts.tokenizer.pad_token_id());
    let bos = parts.tokenizer.special_tokens().get("bos_token");
    text_config["bos_token_id"] = json!(bos.and_then(|token| parts.tokenizer.token_to_id(token)));
    let joined = Joined {
        vision,
        projector: projector_config(kind, Some(&parts.weights), vision)?,
        encoder: open_vision_encoder_as(vision_folder, vision).map_err(InferError::file)?,
        text_config,
        lm_tensors,
        preprocessing: image_processor(vision_folder, vision)?.settings(),
        image_token_id: chat.image.id,
        image_token: chat.image.text.clone(),
        parts,
    };
    Ok((joined, chat))
}

/// A copy of a linear layer's weight with ones on the diagonal, `[width, width]`, and a bias of
/// zeros: the second layer of a container where the model has one layer.
pub(super) fn identity_layer(width: i64, kind: Kind) -> (Tensor, Tensor) {
    let options = (kind, tch::Device::Cpu);
    (Tensor::eye(width, options), Tensor::zeros([width], options))
}
