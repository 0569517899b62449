//! The image preprocessing that belongs to a vision encoder.

use std::fs;
use std::path::Path;

use vlm_data::{ImageProcessor, ImageProcessorClass};
use vlm_model::{ForeignModel, OpenClip, VisionConfig, VisionFamily};

use crate::InferError;
use crate::foreign::foreign_processor;
use crate::json_file::write_json;
use crate::model_files::PREPROCESSOR;
use crate::vision_encoder::vision_config;

/// The image preprocessing in the folder of a vision encoder, for images of the size in `config`: if
/// the encoder was trained with another one, see [`ImageProcessor::scaled_to`]. Without a file, it
/// is the default of the encoder's family, and a warning is logged.
///
/// # Errors
/// A file that cannot be read; images of another size than the encoder was trained with; a size
/// that is not supported.
pub fn image_processor(vision: &Path, config: &VisionConfig) -> Result<ImageProcessor, InferError> {
    let trained = vision_config(vision, None)?;
    let processor = processor_of(vision, &trained)?;
    if trained.image_size == config.image_size {
        return Ok(processor);
    }
    let scaled = processor.scaled_to(u32::try_from(config.image_size).unwrap_or(u32::MAX));
    scaled.map_err(|error| InferError::setting("image_size", format!("`image_size`: {error}")))
}

/// The image preprocessing in the folder of a vision encoder, for images of the size that the
/// encoder was trained with, which `config` has.
fn processor_of(vision: &Path, config: &VisionConfig) -> Result<ImageProcessor, InferError> {
    let (class, name) = match config.family {
        VisionFamily::Clip => (ImageProcessorClass::Clip, "CLIPImageProcessor"),
        VisionFamily::Siglip => (ImageProcessorClass::Siglip, "SiglipImageProcessor"),
    };
    let image_size = config.image_size;
    if let Some(tower) = OpenClip::beside(vision)? {
        let settings = tower.preprocessing().map_err(InferError::file)?;
        return Ok(ImageProcessor::from_settings(tower.path(), &settings, class)?);
    }
    if let Some(processor) = foreign_processor(vision, image_size)? {
        check_size(&processor, vision, image_size)?;
        return Ok(processor);
    }
    let side = u32::try_from(image_size).unwrap_or(u32::MAX);
    let (processor, path) = ImageProcessor::from_folder(vision, class, side)?;
    let Some(path) = path else {
        tracing::warn!(
            "{}: there is no preprocessor_config.json or processor_config.json; images are \
             preprocessed with the defaults of {name}, to {image_size} × {image_size}",
            vision.display()
        );
        return Ok(processor);
    };
    check_size(&processor, &path, image_size)?;
    Ok(processor)
}

/// Checks that the processor in `path` makes images of the size that the encoder takes.
fn check_size(processor: &ImageProcessor, path: &Path, image_size: i64) -> Result<(), InferError> {
    let size = processor.image_size();
    if size as i64 == image_size {
        return Ok(());
    }
    Err(InferError::unusable(format!(
        "{} makes images of {size} × {size}, but the vision encoder in its folder takes \
         {image_size} × {image_size}",
        path.display()
    )))
}

/// Writes the image preprocessing of the encoder in the folder `from`, for images of the size in
/// `config`, to `preprocessor_config.json` in the folder `to`.
///
/// # Errors
/// Settings that cannot be read; a failure of the file system, with the path.
pub fn write_preprocessor(from: &Path, config: &VisionConfig, to: &Path) -> Result<(), InferError> {
    let source = from.join(PREPROCESSOR);
    // Other programs' processors are written in the form in which they are read here.
    let is_readable = ForeignModel::beside(from).is_none() && OpenClip::beside(from)?.is_none();
    let is_trained_size = vision_config(from, None)?.image_size == config.image_size;
    if source.is_file() && is_readable && is_trained_size {
        fs::copy(&source, to.join(PREPROCESSOR)).map_err(InferError::io(&source, "copy it"))?;
        return Ok(());
    }
    write_json(&to.join(PREPROCESSOR), &image_processor(from, config)?.settings())
}
