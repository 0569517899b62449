//! Options for loading a model.

use std::path::PathBuf;

use vlm_shapes::Dtype;

/// Options for loading a model.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The folder of a run, an exported folder in Hugging Face format, a weights file in the folder
    /// of its run, or the folder of a whole model of another program (docs/models.md lists them).
    pub model: PathBuf,
    /// Folder of the vision encoder; `None` for the one in the folder of the model, or else the one
    /// that its `config.json` names.
    pub vision: Option<PathBuf>,
    /// Folder of the tokenizer; `None` for the one in the folder of the model, or else the one that
    /// its `config.json` names.
    pub tokenizer: Option<PathBuf>,
    /// Token that stands for an image in the prompt; `None` for the one that the `config.json` of
    /// the model names, or else that of the language model's family.
    pub image_token: Option<String>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`; `auto` uses the first GPU if there is one.
    pub device: String,
    /// Type of the forward pass; `None` for bfloat16 on CUDA and float32 on the CPU.
    pub dtype: Option<Dtype>,
}

impl LoadOptions {
    /// Options for the model at `model` with its own encoder and tokenizer, on the GPU if there is
    /// one.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        let model = model.into();
        Self {
            model,
            vision: None,
            tokenizer: None,
            image_token: None,
            device: "auto".into(),
            dtype: None,
        }
    }
}
