//! Exports a whole model in a [`Container`], which loads in its own program unchanged.

use std::path::Path;

use serde_json::{Value, json};
use vlm_data::{ChatTokenizer, ImagePlaceholder, Role, Turn};
use vlm_model::weights::save_shards;

use super::chat_files::ChatFiles;
use super::container::{Container, projector_kind, refusal};
use super::file_names::GENERATION_CONFIG;
use super::joined::{Joined, join};
use super::parts::Parts;
use super::source::ExportSource;
use super::{gguf, lfm2_vl, llava, model_card, smolvlm};
use crate::InferError;
use crate::json_file::write_json;
use crate::model_files::PREPROCESSOR;

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
