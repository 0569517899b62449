//! Files of a trained vision encoder: its tensors in checkpoints, and its folder in the out-dir. A
//! frozen encoder is not written.

use std::fs;
use std::path::Path;

use tch::Tensor;
use vlm_infer::{Shapes, write_json, write_preprocessor};
use vlm_model::Vlm;
use vlm_model::weights::{self, Format};
use vlm_torch::Heartbeat;

use crate::TrainError;

/// Prefix of the encoder's tensors in checkpoints, as in MiniMind-V.
const PREFIX: &str = "vision_encoder.";

/// Name of the encoder's folder in the out-dir.
const FOLDER: &str = "vision";

/// The encoder's tensors with their names in a checkpoint; empty when the encoder is frozen.
pub(crate) fn checkpointed(model: &Vlm) -> Vec<(String, Tensor)> {
    let params = model.vision_params();
    if params.trainable().is_empty() {
        return Vec::new();
    }
    let prefixed = |(name, tensor)| (format!("{PREFIX}{name}"), tensor);
    params.named().into_iter().map(prefixed).collect()
}

/// Writes the trained encoder to `out_dir/vision` in Hugging Face format, with the image
/// preprocessing of `from`, the folder that the encoder was loaded from. Writes nothing for a
/// frozen encoder.
///
/// # Errors
/// A failure of the file system, with the path.
pub(crate) fn save(
    model: &Vlm,
    shapes: &Shapes,
    from: &Path,
    out_dir: &Path,
    heartbeat: Heartbeat,
) -> Result<(), TrainError> {
    if model.vision_params().trainable().is_empty() {
        return Ok(());
    }
    let folder = out_dir.join(FOLDER);
    fs::create_dir_all(&folder).map_err(|e| TrainError::at(&folder, e))?;
    let file = folder.join("model.safetensors");
    let named = model.vision_params().named();
    weights::save_with(&file, &named, Format::Safetensors, Some(heartbeat))
        .map_err(|e| TrainError::at(&file, e))?;
    write_preprocessor(from, &shapes.vision, &folder)?;
    Ok(write_json(&folder.join("config.json"), &shapes.vision.to_json())?)
}
