//! Loads a vision encoder from its folder.

use std::path::Path;

use tch::Device;
use vlm_model::VisionConfig;
use vlm_model::params::ParamStore;
use vlm_model::part_files::open_vision_encoder_as;
use vlm_model::vision::{VisionEncoder, is_beside_encoder};

use crate::InferError;
use crate::surplus::refuse_surplus;

/// The configuration of the vision encoder in `folder` for images of `image_size` pixels per side;
/// `None` for the size that it was trained with.
///
/// # Errors
/// A configuration that cannot be read; a size that is not a multiple of the patch size.
pub fn vision_config(folder: &Path, image_size: Option<i64>) -> Result<VisionConfig, InferError> {
    let trained = VisionConfig::from_folder(folder).map_err(InferError::file)?;
    let resized = trained.with_image_size(image_size);
    resized.map_err(|error| InferError::setting("image_size", error.to_string()))
}

/// Loads only the vision encoder in `folder`, for images of `image_size` pixels per side. Returns it
/// with its configuration.
///
/// # Errors
/// A tensor that is missing or has another shape, with its name and both shapes; a file that cannot
/// be read.
pub fn build_encoder(
    folder: &Path,
    image_size: Option<i64>,
    device: Device,
) -> Result<(VisionEncoder, VisionConfig), InferError> {
    let config = vision_config(folder, image_size)?;
    let params = ParamStore::new(device);
    let encoder = VisionEncoder::new(&params.root(), &config);
    load_vision(folder, &config, &params)?;
    Ok((encoder, config))
}

/// Loads the weights of the vision encoder in `folder` into `params`.
///
/// # Errors
/// As [`build_encoder`].
pub(crate) fn load_vision(
    folder: &Path,
    config: &VisionConfig,
    params: &ParamStore,
) -> Result<(), InferError> {
    let weights = open_vision_encoder_as(folder, config).map_err(InferError::file)?;
    let report = weights.load_into(&params.named(), |_| false).map_err(InferError::file)?;
    refuse_surplus(folder, &report.surplus, |name| !is_beside_encoder(config.family, name))
}
