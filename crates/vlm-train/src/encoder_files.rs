//! Files of a trained vision encoder: its tensors in checkpoints, and its folder in the out-dir. A
//! frozen encoder is not written.

use std::path::{Path, PathBuf};

use tch::Tensor;
use vlm_infer::{Shapes, write_json, write_preprocessor};
use vlm_model::weights::{self, Format};
use vlm_model::{VisionConfig, Vlm};
use vlm_torch::Heartbeat;

use crate::TrainError;
use crate::out_dir::create_subfolder;

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

/// The files of a trained encoder in Hugging Face format.
pub(crate) struct EncoderFiles {
    /// The weights by name.
    pub(crate) weights: Vec<(String, Tensor)>,
    config: VisionConfig,
    /// The folder that the encoder was loaded from, which has the image preprocessing.
    from: PathBuf,
}

impl EncoderFiles {
    /// The files of the encoder of `model`, which was loaded from the folder `from`; `None` for a
    /// frozen encoder.
    pub(crate) fn of(model: &Vlm, shapes: &Shapes, from: &Path) -> Option<Self> {
        let params = model.vision_params();
        let is_trained = !params.trainable().is_empty();
        is_trained.then(|| Self {
            weights: params.named(),
            config: shapes.vision.clone(),
            from: from.to_owned(),
        })
    }

    /// Writes the files to `out_dir/vision`.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub(crate) fn save(&self, out_dir: &Path, heartbeat: Heartbeat) -> Result<(), TrainError> {
        let folder = out_dir.join(FOLDER);
        create_subfolder(&folder)?;
        let file = folder.join("model.safetensors");
        weights::save_with(&file, &self.weights, Format::Safetensors, Some(heartbeat))
            .map_err(|e| TrainError::at(&file, e))?;
        write_preprocessor(&self.from, &self.config, &folder)?;
        Ok(write_json(&folder.join("config.json"), &self.config.to_json())?)
    }
}
