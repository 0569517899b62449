//! Whole models of other programs: which of their parts are used together, the token that stands
//! for an image, and the image preprocessing of their processor.

use std::path::Path;

use serde_json::{Value, json};
use vlm_data::{ChatTokenizer, ImagePlaceholder, ImageProcessor, ImageProcessorClass, token_of_id};
use vlm_model::ForeignModel;
use vlm_model::config::ForeignFormat;
use vlm_model::part_files::{open_language_model, open_language_model_alone};
use vlm_model::weights::Weights;

use crate::InferError;
use crate::json_file::read_json;
use crate::model_files::{ModelFiles, PREPROCESSOR};

/// Opens the weights of a language model. The projector of a [`ForeignModel`] is used only with
/// that model's own vision encoder, `vision`.
pub(crate) fn open_lm(path: &Path, vision: &Path) -> Result<Weights, InferError> {
    let weights = if ForeignModel::beside(path).is_none() || is_same_folder(path, vision) {
        open_language_model(path)
    } else {
        tracing::info!(
            "{}: its projector is not used, because it is for its own vision encoder",
            path.display()
        );
        open_language_model_alone(path)
    };
    weights.map_err(InferError::file)
}

/// Whether `weights`, a folder or a file in it, is in the folder `other`.
fn is_same_folder(weights: &Path, other: &Path) -> bool {
    let folder = if weights.is_dir() { Some(weights) } else { weights.parent() };
    let folder = folder.map(|folder| if folder == Path::new("") { Path::new(".") } else { folder });
    match (folder.map(Path::canonicalize), other.canonicalize()) {
        (Some(Ok(folder)), Ok(other)) => folder == other,
        _ => false,
    }
}

/// The image token of the model of `files`, if it is a whole model with an id of it and its own
/// tokenizer: in another one the id is that of another token.
///
/// # Errors
/// The tokenizer does not have the id.
pub(crate) fn foreign_placeholder(
    files: &ModelFiles,
) -> Result<Option<ImagePlaceholder>, InferError> {
    let lm = files.lm.as_ref().filter(|lm| is_same_folder(lm, &files.tokenizer));
    let model = lm.and_then(|lm| ForeignModel::beside(lm));
    let Some(id) = model.and_then(|model| model.image_token_id()) else { return Ok(None) };
    let token = token_of_id(&files.tokenizer, id)?.ok_or_else(|| {
        InferError::setting(
            "image_token",
            format!(
                "{}: config.json names the image token {id}, which the tokenizer in the same \
                 folder does not have; set `image_token`",
                files.tokenizer.display()
            ),
        )
    })?;
    Ok(Some(ImagePlaceholder::new(token)))
}

/// Warns if the tokenizer has the token that Idefics3 and SmolVLM write around an image, but does
/// not say that it is one.
pub(crate) fn warn_of_missing_tags(files: &ModelFiles, tokenizer: &ChatTokenizer) {
    const TAG: &str = "<fake_token_around_image>";
    let model = files.lm.as_deref().and_then(ForeignModel::beside);
    let is_idefics3 = model.is_some_and(|model| model.format() == ForeignFormat::Idefics3);
    if is_idefics3 && tokenizer.token_to_id(TAG).is_some() && !tokenizer.placeholder().has_tags() {
        tracing::warn!(
            "{}: the model was trained with {TAG} around an image, which is not in the prompt \
             here; name it as fake_image_token, with image_token, in tokenizer_config.json",
            files.tokenizer.display()
        );
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
    let settings = match model.format() {
        ForeignFormat::Llava => return Ok(None),
        ForeignFormat::NanoVlm => json!({
            "image_processor_type": "SiglipImageProcessor", "do_normalize": false,
            "size": {"height": side, "width": side}, "resample": 3,
        }),
        ForeignFormat::Idefics3 | ForeignFormat::Lfm2Vl => squeezed(folder, &model, side)?,
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
    let difference = match model.format() {
        ForeignFormat::Idefics3 if is_split(true) => {
            Some("splits large images into tiles; only the whole image, as one tile, is used")
        }
        ForeignFormat::Idefics3 if settings["do_resize"] != false => {
            Some("scales images in two steps; here they are scaled to one tile in one step")
        }
        ForeignFormat::Lfm2Vl if settings["size"]["height"] != side => {
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
        let json = read_json(&path)?;
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
