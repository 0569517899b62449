//! What a whole model of another program needs besides its tensors: the token that stands for an
//! image, and the image preprocessing of its processor.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vlm_data::{ImagePlaceholder, ImageProcessor, ImageProcessorClass, token_of_id};
use vlm_model::config::Container;
use vlm_model::{ForeignModel, ImageToken};

use crate::InferError;
use crate::assemble::{ModelFiles, is_same_folder};
use crate::preprocessor::PREPROCESSOR;

/// The image token of the model of `files`, if it is a whole model that names one and the tokenizer
/// has it.
///
/// # Errors
/// The id that `config.json` names is not one of its own tokenizer.
pub(crate) fn foreign_placeholder(
    files: &ModelFiles,
) -> Result<Option<ImagePlaceholder>, InferError> {
    let Some(lm) = &files.lm else { return Ok(None) };
    // With another tokenizer the id is that of another token.
    let is_own = || is_same_folder(lm, &files.tokenizer);
    match ForeignModel::beside(lm).and_then(|model| model.image_token()) {
        Some(ImageToken::Id(id)) if is_own() => {
            let token = token_of_id(&files.tokenizer, id)?.ok_or_else(|| {
                InferError::setting(
                    "image_token",
                    format!(
                        "{}: config.json names the image token {id}, which the tokenizer in the \
                         same folder does not have; set `image_token`",
                        files.tokenizer.display()
                    ),
                )
            })?;
            Ok(Some(ImagePlaceholder::new(token)))
        }
        _ => Ok(None),
    }
}

/// Warns of what the model with the weights `lm` does otherwise in its own program, if it is used
/// with its own encoder, `vision`.
pub(crate) fn warn_of_differences(lm: &Path, vision: &Path) {
    let model = ForeignModel::beside(lm).filter(|_| is_same_folder(lm, vision));
    if let Some(difference) = model.and_then(|model| model.difference()) {
        tracing::warn!("{}: {difference}", lm.display());
    }
}

/// The image preprocessing of the whole model in `folder`, for images of `side` pixels; `None` if
/// its processor is one that is read as it is.
///
/// # Errors
/// A file that cannot be read, or a setting that is not supported.
pub(crate) fn foreign_processor(
    folder: &Path,
    side: i64,
) -> Result<Option<ImageProcessor>, InferError> {
    let Some(model) = ForeignModel::beside(folder) else { return Ok(None) };
    let settings = match model.container() {
        Container::Llava => return Ok(None),
        Container::NanoVlm => json!({
            "image_processor_type": "SiglipImageProcessor", "do_normalize": false,
            "size": {"height": side, "width": side}, "resample": 3,
        }),
        Container::Idefics3 | Container::Lfm2Vl => squeezed(folder, &model, side)?,
    };
    let processor = ImageProcessor::from_settings(folder, &settings, ImageProcessorClass::Siglip)?;
    Ok(Some(processor))
}

/// The settings of a processor for tiles as those of one that scales the whole image to one tile.
fn squeezed(folder: &Path, model: &ForeignModel, side: i64) -> Result<Value, InferError> {
    let (path, mut settings) = processor_settings(folder)?;
    let tile = [&settings["max_image_size"]["longest_edge"], &settings["tile_size"]];
    let tile = tile.into_iter().find_map(Value::as_i64).unwrap_or(side);
    let is_split = |default| settings["do_image_splitting"].as_bool().unwrap_or(default);
    let difference = match model.container() {
        Container::Idefics3 if is_split(true) => {
            Some("splits large images into tiles; only the whole image, as one tile, is used")
        }
        Container::Idefics3 if settings["do_resize"] != false => {
            Some("scales images in two steps; here they are scaled to one tile in one step")
        }
        Container::Lfm2Vl if settings["size"]["height"] != side => {
            Some("keeps the aspect ratio of images; here they are scaled to a square")
        }
        _ => None,
    };
    if let Some(difference) = difference {
        tracing::warn!("{}: this processor {difference}", path);
    }
    let Some(settings) = settings.as_object_mut() else {
        return Err(InferError::unusable(format!("{path}: expected an object")));
    };
    settings.insert("image_processor_type".into(), json!("SiglipImageProcessor"));
    settings.insert("do_resize".into(), json!(true));
    settings.insert("size".into(), json!({"height": tile, "width": tile}));
    Ok(json!(settings))
}

/// The settings of the image processor in `folder`, with the path of their file.
fn processor_settings(folder: &Path) -> Result<(String, Value), InferError> {
    for name in [PREPROCESSOR, "processor_config.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(InferError::io(&path, "read it"))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|error| InferError::at(&path, error))?;
        // transformers 5 writes one file for all processors of a model.
        let within = &json["image_processor"];
        if within.is_object() || name == PREPROCESSOR {
            let settings = if within.is_object() { within.clone() } else { json };
            return Ok((path.display().to_string(), settings));
        }
    }
    Err(InferError::unusable(format!(
        "{}: expected the settings of its image processor in {PREPROCESSOR} or \
         processor_config.json",
        folder.display()
    )))
}
