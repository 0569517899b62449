//! The image preprocessing that belongs to a vision encoder.

use std::fs;
use std::path::Path;

use vlm_data::{ImageProcessor, ImageProcessorClass};
use vlm_model::{VisionConfig, VisionFamily};

use crate::InferError;
use crate::json_file::write_json;

/// What the settings of the image processor are called in every folder that is written.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";

/// The preprocessing beside a vision encoder of that shape; where no file says anything, what the
/// encoder's own class does, with a line in the log.
///
/// # Errors
/// A file that cannot be read; pictures of another side.
pub fn image_processor(vision: &Path, config: &VisionConfig) -> Result<ImageProcessor, InferError> {
    let (class, name) = match config.family {
        VisionFamily::Clip => (ImageProcessorClass::Clip, "CLIPImageProcessor"),
        VisionFamily::Siglip => (ImageProcessorClass::Siglip, "SiglipImageProcessor"),
    };
    let image_size = config.image_size;
    let side = u32::try_from(image_size).unwrap_or(u32::MAX);
    let (processor, path) = ImageProcessor::from_folder(vision, class, side)?;
    let Some(path) = path else {
        tracing::warn!(
            "{}: neither preprocessor_config.json nor processor_config.json is there; images are \
             preprocessed as {name} does by itself, to {image_size} × {image_size}",
            vision.display()
        );
        return Ok(processor);
    };
    if processor.image_size() as i64 != image_size {
        return Err(InferError::unusable(format!(
            "{} makes pictures of side {}, but the vision encoder beside it takes {image_size}",
            path.display(),
            processor.image_size()
        )));
    }
    Ok(processor)
}

/// Writes the preprocessing of the encoder in the folder `from` to the folder `to`: its
/// `preprocessor_config.json`, or the same settings from wherever they came.
///
/// # Errors
/// Settings that cannot be read; the system's, with the path.
pub fn write_preprocessor(from: &Path, config: &VisionConfig, to: &Path) -> Result<(), InferError> {
    let source = from.join(PREPROCESSOR);
    if source.is_file() {
        fs::copy(&source, to.join(PREPROCESSOR)).map_err(InferError::io(&source, "copy it"))?;
        return Ok(());
    }
    write_json(&to.join(PREPROCESSOR), &image_processor(from, config)?.settings())
}
