//! Configurations of the language model, the vision encoder and the projector, and the choice of
//! the parts that are trained.
//!
//! Reads and writes the `config.json` of every supported family and lists the names and shapes of
//! its tensors. It creates no tensors and does not link libtorch, so that programs that only plan
//! or check a run can use it.
//!
//! ```
//! use vlm_shapes::{LmConfig, LmFamily};
//!
//! let config = LmConfig::from_json(&serde_json::json!({
//!     "model_type": "qwen3",
//!     "hidden_size": 1024,
//!     "num_hidden_layers": 28,
//!     "num_attention_heads": 16,
//!     "num_key_value_heads": 8,
//! }))?;
//! assert_eq!(config.family, LmFamily::Llama);
//! assert!(config.qk_norm);
//! # Ok::<(), vlm_shapes::ShapeError>(())
//! ```

mod config_file;
mod error;
mod family;
mod flops;
mod foreign;
mod freeze;
mod hugging_face;
mod image_size;
mod keys;
mod limits;
mod lm;
mod lm_json;
mod memory;
pub mod names;
mod open_clip;
mod projector;
mod request;
mod rope;
mod tensors;
mod transformers_form;
mod vision;
mod vision_file;

pub use error::ShapeError;
pub use family::LmFamily;
pub use flops::{BatchShape, GpuPeak, StepFlops};
pub use foreign::{ForeignFormat, ForeignModel};
pub use freeze::FreezePolicy;
pub use lm::{LmConfig, LoadBalance, MoeConfig};
pub use memory::{Memory, MemoryLoad};
pub use names::LmNames;
pub use open_clip::OpenClip;
pub use projector::{PROJECTOR_SCOPE, ProjectorConfig, ProjectorKind, is_projector};
pub use request::{Dtype, ShapeRequest};
pub use rope::{RopeScaling, RotaryLayout, Yarn};
pub use tensors::TensorShape;
pub use vision::{VisionConfig, VisionFamily};
