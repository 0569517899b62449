//! Exports a whole model in a [`Container`], which loads in its own program unchanged.

use std::path::Path;

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use vlm_data::{ChatTokenizer, ImagePlaceholder, Role, Turn};
use vlm_model::detect::projector_config;
use vlm_model::part_files::open_vision_encoder_as;
use vlm_model::weights::{Weights, save_shards};
use vlm_model::{ProjectorConfig, ProjectorKind, VisionConfig};

use super::chat_files::ChatFiles;
use super::container::{Container, projector_kind, refusal};
use super::language_model::{Tensors, extend_vocabulary, transformers_tensors};
use super::parts::Parts;
use super::{ExportSource, GENERATION_CONFIG, gguf, lfm2_vl, llava, model_card, smolvlm};
use crate::InferError;
use crate::json_file::write_json;
use crate::preprocessor::{PREPROCESSOR, image_processor};

/// Writes the folder `target` with the model in a container. Values and dtypes are those of the
/// source; shards have at most `max_shard_bytes` bytes. The folder is written atomically; an
/// existing one is replaced.
///
/// # Errors
/// The container does not hold the model exactly, with the reason; a part that cannot be found or
/// read; a failure of the file system.
pub fn export_to(
    source: &ExportSource,
    container: Container,
    target: &Path,
    max_shard_bytes: u64,
) -> Result<(), InferError> {
    let parts = Parts::find(source)?;
    let Some((folder, vision)) = &parts.vision else {
        if container != Container::Gguf {
            return Err(InferError::unusable(format!(
                "{} is a language model without a projector, which only the container gguf holds; \
                 for transformers use `export_hf`",
                source.model.display()
            )));
        }
        return vlm_torch::write_folder_atomically(target, |to| gguf::write(&parts, None, to));
    };
    let kind = projector_kind(&parts);
    if let Some(reason) = container.reason_against(vision, kind) {
        return Err(refusal(container, &reason, vision, kind));
    }
    let (joined, chat) = join(&parts, folder, vision, kind, container)?;
    vlm_torch::write_folder_atomically(target, |to| {
        model_card::write(&joined, container, source, to)?;
        let folder = match container {
            Container::Llava => llava::folder(&joined)?,
            Container::SmolVlm => smolvlm::folder(&joined)?,
            Container::Lfm2Vl => lfm2_vl::folder(&joined)?,
            Container::Gguf => return gguf::write(&parts, Some(&joined), to),
        };
        save_shards(to, &folder.tensors, max_shard_bytes)?;
        write_json(&to.join("config.json"), &folder.config)?;
        write_json(&to.join(PREPROCESSOR), &folder.preprocessor)?;
        write_json(&to.join("processor_config.json"), &folder.processor)?;
        write_json(&to.join(GENERATION_CONFIG), &generation_config(&joined))?;
        chat.write(to)?;
        check_prompt(&joined, &chat, to)
    })
}

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
fn join<'a>(
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

/// Greedy decoding, the tokens that end a text, and the image token as one that is never generated.
fn generation_config(joined: &Joined) -> Value {
    let mut tree = json!({
        "do_sample": false,
        "eos_token_id": joined.parts.config["eos_token_id"],
        "pad_token_id": joined.text_config["pad_token_id"],
        "suppress_tokens": [joined.image_token_id],
    });
    if !joined.text_config["bos_token_id"].is_null() {
        tree["bos_token_id"] = joined.text_config["bos_token_id"].clone();
    }
    tree
}

/// Checks that the exported tokenizer gives the prompt of a conversation the ids that the model was
/// trained with, except for the image token.
///
/// # Errors
/// The ids differ.
fn check_prompt(joined: &Joined, chat: &ChatFiles, folder: &Path) -> Result<(), InferError> {
    let own = &joined.parts.tokenizer;
    let exported =
        ChatTokenizer::with_placeholder(folder, ImagePlaceholder::new(&chat.image.text))?;
    let turns = [
        Turn::new(Role::User, "<image>\nWhat is in the picture?"),
        Turn::new(Role::Assistant, "A red square, and 2 blue stars."),
        Turn::new(Role::User, "Is it dark?"),
    ];
    let tokens = joined.projector.tokens_per_image as usize;
    let (mut expected, starts) = own.encode_prompt(&turns, 1, tokens)?;
    for start in starts {
        expected[start..start + tokens].fill(chat.image.id);
    }
    let (found, _) = exported.encode_prompt(&turns, 1, tokens)?;
    if found == expected {
        return Ok(());
    }
    let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
    Err(InferError::unusable(format!(
        "{}: with the special token {:?} for images, the prompt of a conversation has other tokens \
         than in training (from token {} of {}), so no container holds this model exactly; export \
         it with `export_hf`",
        joined.parts.tokenizer_folder.display(),
        chat.image.text,
        differs.unwrap_or(found.len().min(expected.len())),
        expected.len()
    )))
}

/// A copy of a linear layer's weight with ones on the diagonal, `[width, width]`, and a bias of
/// zeros: the second layer of a container where the model has one layer.
pub(super) fn identity_layer(width: i64, kind: Kind) -> (Tensor, Tensor) {
    let options = (kind, tch::Device::Cpu);
    (Tensor::eye(width, options), Tensor::zeros([width], options))
}
