//! Inference: opens a trained vision-language model with its tokenizer and image preprocessing,
//! generates text about images, evaluates on rows, and exports to Hugging Face's form.
//!
//! Knows no training, no command line and no terminal.

pub mod answer;
mod assemble;
mod device;
pub mod device_batch;
mod error;
pub mod eval;
mod export;
mod json_file;
mod precision;
mod preprocessor;
pub mod text_score;
mod trained;

pub use assemble::{ModelFiles, Shapes, build_encoder, build_model, open_tokenizer, settle_shapes};
pub use device::select_device;
pub use error::{ErrorKind, InferError};
pub use export::{ExportSource, export_hf, is_exported_name};
pub use json_file::write_json;
pub use precision::{autocast_kind, default_dtype};
pub use preprocessor::{image_processor, write_preprocessor};
pub use trained::{
    TrainedModel, TrainedSource, part_of_run, shape_of_run, weights_name, weights_of_run,
};
pub use vlm_shapes::{Dtype, ShapeRequest};
