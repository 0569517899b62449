//! A vision encoder that is trained too: its place in checkpoints, and its folder in the out-dir.
//! One that stays frozen is where it came from, and is not written again.

use std::fs;
use std::path::Path;

use tch::Tensor;
use vlm_infer::{Shapes, write_json, write_preprocessor};
use vlm_model::Vlm;
use vlm_model::weights::{self, Format};
use vlm_torch::Heartbeat;

use crate::TrainError;

/// Of MiniMind-V's names for it, before the encoder's own.
const PREFIX: &str = "vision_encoder.";

/// The folder in the out-dir.
const FOLDER: &str = "vision";

/// The encoder's tensors under the names that a checkpoint has for them; none when it is frozen.
pub(crate) fn checkpointed(model: &Vlm) -> Vec<(String, Tensor)> {
    let params = model.vision_params();
    if params.trainable().is_empty() {
        return Vec::new();
    }
    let prefixed = |(name, tensor)| (format!("{PREFIX}{name}"), tensor);
    params.named().into_iter().map(prefixed).collect()
}

/// Writes the trained encoder in Hugging Face form to `out_dir/vision`, with the preprocessing of
/// the folder `from` that it started in. Nothing is written for a frozen one.
///
/// # Errors
/// The system's, with the path.
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
