//! Inference: loads a trained vision-language model with its tokenizer and image preprocessing,
//! generates text about images, evaluates models on rows, and exports models in Hugging Face
//! format.
//!
//! This crate does not train, and uses no command line and no terminal.
//!
//! ```no_run
#![doc = include_str!("../examples/caption.rs")]
//! ```

mod assemble;
mod batch_losses;
mod device;
pub mod device_batch;
mod error;
pub mod evaluation;
mod export;
mod foreign;
mod generation_batch;
mod generator;
mod image_gain;
mod json_file;
mod lm_shape;
mod load_options;
mod model_files;
mod model_folder;
mod model_inputs;
mod precision;
mod preprocessor;
mod row_completions;
mod surplus;
pub mod text_score;
mod vision_encoder;
mod vision_language_model;

pub use assemble::{Shapes, build_model, open_tokenizer, settle_shapes};
pub use device::select_device;
pub use error::{ErrorKind, InferError};
pub use export::{Container, ExportSource, export_hf, export_to, is_exported_name};
pub use generation_batch::{GenerationBatch, NewPrompt};
pub use generator::{Generator, PreparedPrompt, user_turn};
pub use json_file::write_json;
pub use load_options::LoadOptions;
pub use model_files::ModelFiles;
pub use model_folder::{
    image_size_of_run, part_of_model, part_of_run, shape_of_run, weights_name, weights_of_run,
};
pub use model_inputs::ModelInputs;
pub use precision::{autocast_kind, default_dtype};
pub use preprocessor::{image_processor, write_preprocessor};
pub use row_completions::{Completion, OnCompletions};
pub use vision_encoder::{build_encoder, vision_config};
pub use vision_language_model::{VisionLanguageModel, require_projector};
pub use vlm_shapes::{Dtype, ShapeRequest};
