//! The settings of a training run: [`TrainConfig`], and the list of all [`settings`].
//!
//! This crate reads configuration files and recipes, combines them with defaults and flags, and
//! records where each value comes from. A command line makes its flags from [`settings`]. The crate
//! does not depend on libtorch.
//!
//! ```
//! use vlm_config::{Layers, Stage};
//!
//! let mut layers = Layers::new(Stage::Pretrain);
//! layers.add_recipe("minimind-3v")?;
//! layers.settle()?;
//! let config = layers.resolve()?;
//! assert_eq!(config.data.max_seq_len, 450);
//! # Ok::<(), vlm_config::ConfigError>(())
//! ```

mod declare;
mod error;
mod file;
mod flags;
mod identity;
mod kind;
mod layers;
mod recipes;
mod schema;
mod setting;
mod train;
mod validate;
mod values;

pub use error::ConfigError;
pub use file::{Entries, find, read_file};
pub use flags::{is_named_setting, with_dashes, with_flags};
pub use identity::defaults_of_new_settings;
pub use kind::Kind;
pub use layers::{Layers, Origin};
pub use recipes::{RECIPES, Recipe};
pub use schema::json_schema;
pub use setting::{PathTraits, Scope, Setting, Traits, shown_value};
pub use train::{
    DataConfig, EvalConfig, MAX_THREADS, ModelConfig, OptimConfig, RunConfig, Stage, TrainConfig,
    settings,
};
pub use values::{DtypeChoice, LossAverage, LrSchedule, OnSaveError, Resume, Seconds};
pub use vlm_shapes::{Dtype, FreezePolicy, ProjectorKind, ShapeRequest};
