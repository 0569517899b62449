//! Language model, vision encoder, projector, and the vision-language model made of the three.
//!
//! Builds models from configurations, loads and saves their weights, computes losses and generates
//! tokens. It does not know where batches come from (`vlm-data`) or what is done with gradients
//! (`vlm-train`).
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use vlm_model::{ImageInput, LmConfig, ModelBatch, VisionConfig, Vlm};
//!
//! let lm = LmConfig { dim: 64, n_layers: 2, vocab_size: 100, ..LmConfig::default() };
//! let vision = VisionConfig {
//!     hidden_size: 48,
//!     num_attention_heads: 4,
//!     num_hidden_layers: 1,
//!     patch_size: 56,
//!     ..VisionConfig::default()
//! };
//! let model = Vlm::new(&lm, &vision, Device::Cpu)?;
//! // A row of 20 tokens with an image of 4 × 4 patches from position 2 on.
//! let batch = ModelBatch {
//!     input_ids: Tensor::ones([1, 20], (Kind::Int64, Device::Cpu)),
//!     packed_lengths: None,
//!     images: ImageInput::Pixels(Tensor::zeros([1, 3, 224, 224], (Kind::Float, Device::Cpu))),
//!     image_starts: vec![(0, 2)],
//! };
//! assert_eq!(model.forward(&batch, None, false)?.hidden.size(), [1, 20, 64]);
//! # Ok::<(), vlm_model::ModelError>(())
//! ```

// A unit test uses the golden tests' helpers, which refer to this crate by its name.
#[cfg(test)]
extern crate self as vlm_model;

mod attention;
mod containers;
mod converted_weights;
pub mod detect;
mod equal_images;
mod error;
mod feed_forward;
mod fused_attention;
pub mod generate;
mod indices;
mod kv_cache;
pub mod layers;
pub mod lm;
mod lm_init;
mod loss;
mod model_batch;
mod open_clip;
mod packed_rows;
pub mod params;
pub mod part_files;
mod projector;
#[cfg(test)]
mod reference_float16;
mod rope;
pub mod sampling;
mod shared_prefix;
pub mod vision;
mod vlm;
pub mod weights;

pub use converted_weights::ConvertedWeights;
pub use error::ModelError;
pub use kv_cache::KvCache;
pub use loss::{LossSum, RowLosses};
pub use model_batch::{ImageInput, ModelBatch};
pub use projector::Projector;
pub use vlm::Vlm;
pub use vlm_shapes::{
    self as config, ForeignModel, FreezePolicy, LmConfig, LmFamily, MoeConfig, OpenClip,
    ProjectorConfig, ProjectorKind, ShapeError, VisionConfig, VisionFamily, is_projector, names,
};
