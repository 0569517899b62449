//! What the input of a model is made with: its tokenizer, its shapes and its image preprocessing.
//! No weights are loaded.

use std::sync::Arc;

use vlm_data::{ChatTokenizer, ImageProcessor};
use vlm_shapes::ShapeRequest;

use crate::InferError;
use crate::assemble::{Shapes, open_tokenizer, settle_shapes};
use crate::load_options::LoadOptions;
use crate::model_files::ModelFiles;
use crate::model_folder::ModelFolder;
use crate::preprocessor::image_processor;

/// The parts of a model that make its input.
pub struct ModelInputs {
    /// The tokenizer, with the chat template.
    pub tokenizer: Arc<ChatTokenizer>,
    /// The image preprocessing.
    pub processor: Arc<ImageProcessor>,
    /// The shapes of the model.
    pub shapes: Shapes,
    /// Number of tokens to which the run of the model truncated its rows; `None` for a model that
    /// is not of a run.
    pub max_seq_len: Option<usize>,
    pub(crate) files: ModelFiles,
}

impl ModelInputs {
    /// Opens the parts of the model at `options.model`.
    ///
    /// # Errors
    /// A part that cannot be found, with the option for it; parts that do not fit each other.
    pub fn open(options: &LoadOptions) -> Result<Self, InferError> {
        let folder = ModelFolder::find(&options.model)?;
        let of_run = || folder.config["image_token"].as_str().map(str::to_owned);
        let files = ModelFiles {
            lm: Some(folder.weights.clone()),
            vision: folder.part(&options.vision, "vision")?,
            image_size: folder.image_size(),
            tokenizer: folder.part(&options.tokenizer, "tokenizer")?,
            image_token: options.image_token.clone().or_else(of_run),
            projector: None,
        };
        let max_seq_len = folder.config["run"]["data"]["max_seq_len"].as_u64();
        let max_seq_len = max_seq_len.map(|length| length as usize);
        Self::assemble(files, &folder.stop_token_ids(), max_seq_len)
    }

    /// Opens the parts of a model that is to be trained.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_files(files: ModelFiles) -> Result<Self, InferError> {
        Self::assemble(files, &[], None)
    }

    fn assemble(
        files: ModelFiles,
        stop_token_ids: &[i64],
        max_seq_len: Option<usize>,
    ) -> Result<Self, InferError> {
        let mut tokenizer = open_tokenizer(&files)?;
        tokenizer.add_stop_token_ids(stop_token_ids);
        let shapes = settle_shapes(&files, &ShapeRequest::default(), &tokenizer, 0)?;
        let processor = Arc::new(image_processor(&files.vision, &shapes.vision)?);
        Ok(Self { tokenizer: Arc::new(tokenizer), processor, shapes, max_seq_len, files })
    }
}
