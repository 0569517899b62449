//! The files of a model.

use std::path::PathBuf;

use vlm_model::ProjectorKind;

/// The files that a model is made of.
#[derive(Debug, Clone, Default)]
pub struct ModelFiles {
    /// Weights of the language model; `None` for random weights.
    pub lm: Option<PathBuf>,
    /// Folder of the vision encoder, in the format of Hugging Face or open_clip.
    pub vision: PathBuf,
    /// Side in pixels of the images for the vision encoder; `None` for the one that it was trained
    /// with. For another one its position embeddings are interpolated.
    pub image_size: Option<i64>,
    /// Folder with `tokenizer.json` and `tokenizer_config.json`.
    pub tokenizer: PathBuf,
    /// Token that stands for an image in a prompt; `None` for that of the language model's family.
    pub image_token: Option<String>,
    /// Type of the projector; `None` for that of the weights, or else of the language model's
    /// family.
    pub projector: Option<ProjectorKind>,
}

/// Name of the file with the settings of the image processor.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";
