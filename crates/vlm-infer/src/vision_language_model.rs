//! Loads a trained model with its tokenizer and image preprocessing.

use std::path::PathBuf;
use std::sync::Arc;

use vlm_data::{ChatTokenizer, ImageProcessor};
use vlm_model::sampling::Sampling;
use vlm_model::{Vlm, is_projector};
use vlm_shapes::Dtype;

use crate::InferError;
use crate::assemble::build_model;
use crate::device::select_device;
use crate::foreign::open_lm;
use crate::generator::Generator;
use crate::load_options::LoadOptions;
use crate::model_files::ModelFiles;
use crate::model_inputs::ModelInputs;
use crate::precision::default_dtype;

/// A trained vision-language model with its tokenizer and image preprocessing.
pub struct VisionLanguageModel {
    /// The language model, the projector and the vision encoder, with all parameters frozen.
    pub model: Vlm,
    /// The tokenizer, with the chat template.
    pub tokenizer: Arc<ChatTokenizer>,
    /// The image preprocessing.
    pub processor: Arc<ImageProcessor>,
    /// Type of the forward pass.
    pub dtype: Dtype,
    /// The weights file or folder that was read.
    pub weights: PathBuf,
}

impl VisionLanguageModel {
    /// Loads the model at `path` with the defaults of [`LoadOptions::new`]. `path` is the folder of
    /// a run, an exported folder, or a weights file of a run.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_pretrained(path: impl Into<PathBuf>) -> Result<Self, InferError> {
        Self::open(&LoadOptions::new(path))
    }

    /// Loads a model.
    ///
    /// # Errors
    /// A part that cannot be found, with the option for it; parts that do not fit each other;
    /// weights without a projector.
    pub fn open(options: &LoadOptions) -> Result<Self, InferError> {
        let device = select_device(&options.device)?;
        let ModelInputs { tokenizer, processor, shapes, files, .. } = ModelInputs::open(options)?;
        let weights = files.lm.clone().unwrap_or_else(|| options.model.clone());
        require_projector(&files)?;
        let model = build_model(&files, &shapes, true, 0, device)?;
        model.params().set_trainable(|_| false);
        model.vision_params().set_trainable(|_| false);
        let dtype = options.dtype.unwrap_or_else(|| default_dtype(device));
        Ok(Self { model, tokenizer, processor, dtype, weights })
    }

    /// A generator with this model. Its defaults are at most 256 new tokens for a prompt, greedy
    /// decoding, and 16 rows in a batch; change its fields for others.
    pub fn generator(&self) -> Generator<'_> {
        Generator {
            model: &self.model,
            tokenizer: &self.tokenizer,
            processor: &self.processor,
            dtype: self.dtype,
            batch_size: 16,
            max_new_tokens: 256,
            sampling: Sampling::default(),
            blank_images: false,
        }
    }
}

/// Checks that the weights of the language model are those of a whole model, with a projector: with
/// a random one, the generated text would not depend on the image.
///
/// # Errors
/// They have no projector.
pub fn require_projector(files: &ModelFiles) -> Result<(), InferError> {
    let Some(path) = &files.lm else {
        return Err(InferError::setting("lm", "`lm`: random weights have no trained projector"));
    };
    if open_lm(path, &files.vision)?.names().any(is_projector) {
        return Ok(());
    }
    Err(InferError::unusable(format!(
        "{}: the weights have no projector, so the model cannot use images; use weights that \
         `vlm pretrain` wrote",
        path.display()
    )))
}
