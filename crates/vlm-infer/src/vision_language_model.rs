//! A trained model with its tokenizer and image preprocessing, opened from any of its forms on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vlm_data::{ChatTokenizer, ImageProcessor};
use vlm_model::part_files::open_language_model;
use vlm_model::sampling::Sampling;
use vlm_model::{Vlm, is_projector};
use vlm_shapes::{Dtype, ShapeRequest};

use crate::InferError;
use crate::assemble::{ModelFiles, build_model, open_tokenizer, settle_shapes};
use crate::device::select_device;
use crate::generator::Generator;
use crate::model_folder::ModelFolder;
use crate::precision::default_dtype;
use crate::preprocessor::image_processor;

/// What of a model is loaded, and where it runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The folder of a run, an exported folder in Hugging Face form, or a weight file with the
    /// `config.json` of its run beside it.
    pub model: PathBuf,
    /// Folder of the vision encoder; `None`: in the model's own folder, or where `config.json` says.
    pub vision: Option<PathBuf>,
    /// Folder of the tokenizer; `None`: in the model's own folder, or where `config.json` says.
    pub tokenizer: Option<PathBuf>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes the first GPU if there is one.
    pub device: String,
    /// Type of the forward pass; `None`: bfloat16 on CUDA, float32 on the CPU.
    pub dtype: Option<Dtype>,
}

impl LoadOptions {
    /// The model at `model` with its own encoder and tokenizer, on the GPU if there is one.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        let model = model.into();
        Self { model, vision: None, tokenizer: None, device: "auto".into(), dtype: None }
    }
}

/// A vision-language model, ready to generate.
pub struct VisionLanguageModel {
    /// The language model, the projector and the vision encoder; none of their parameters is trained.
    pub model: Vlm,
    /// Its tokenizer, with the chat template.
    pub tokenizer: Arc<ChatTokenizer>,
    /// Its image preprocessing.
    pub processor: Arc<ImageProcessor>,
    /// Type of the forward pass.
    pub dtype: Dtype,
    /// The weight file or folder that was read.
    pub weights: PathBuf,
}

impl VisionLanguageModel {
    /// Opens the model at `path` as [`LoadOptions::new`] says: the folder of a run, an exported
    /// folder, or a weight file of a run.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_pretrained(path: impl Into<PathBuf>) -> Result<Self, InferError> {
        Self::open(&LoadOptions::new(path))
    }

    /// Opens a model.
    ///
    /// # Errors
    /// A part that cannot be found, with the option that names it; parts that do not fit each other;
    /// weights without a projector.
    pub fn open(options: &LoadOptions) -> Result<Self, InferError> {
        let device = select_device(&options.device)?;
        let folder = ModelFolder::find(&options.model)?;
        let weights = folder.weights.clone();
        let files = ModelFiles {
            lm: Some(weights.clone()),
            vision: folder.part(&options.vision, "vision")?,
            tokenizer: folder.part(&options.tokenizer, "tokenizer")?,
            image_token: folder.config["image_token"].as_str().map(str::to_owned),
            projector: None,
        };
        let mut tokenizer = open_tokenizer(&files)?;
        tokenizer.add_stop_token_ids(&folder.stop_token_ids());
        let tokenizer = Arc::new(tokenizer);
        let shapes = settle_shapes(&files, &ShapeRequest::default(), &tokenizer, 0)?;
        let processor = Arc::new(image_processor(&files.vision, &shapes.vision)?);
        require_projector(&weights)?;
        let model = build_model(&files, &shapes, true, 0, device)?;
        model.params().set_trainable(|_| false);
        model.vision_params().set_trainable(|_| false);
        let dtype = options.dtype.unwrap_or_else(|| default_dtype(device));
        Ok(Self { model, tokenizer, processor, dtype, weights })
    }

    /// Generates with this model: at most 256 new tokens for a prompt, always the most likely one,
    /// 16 rows in a batch. The fields of what is returned can be set.
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

/// With a projector of random weights the model would generate text that has nothing to do with the
/// image.
fn require_projector(path: &Path) -> Result<(), InferError> {
    let weights = open_language_model(path).map_err(InferError::file)?;
    if weights.names().any(is_projector) {
        return Ok(());
    }
    Err(InferError::unusable(format!(
        "{}: there is no projector in it, so this model has not learned to see; give the weights \
         that `vlm pretrain` leaves",
        path.display()
    )))
}
