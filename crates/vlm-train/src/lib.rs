//! Training: configuration, optimizer, schedule, the loop, checkpoints, metrics.
//!
//! Joins `vlm-data` and `vlm-model`, which do not know each other. Knows no command line and
//! prints nothing but through `tracing` and the progress bar.

pub mod answer;
mod assemble;
pub mod cache_features;
pub mod checkpoint;
pub mod config;
pub mod demo;
pub mod device_batch;
mod dir_lock;
mod encoder_files;
mod error;
pub mod eval;
pub mod event_file;
mod export;
mod leaves;
pub mod metrics;
pub mod optimizer;
mod out_dir;
mod out_of_memory;
pub mod parallel;
pub mod precision;
pub mod report;
pub mod run;
pub mod scaler;
pub mod schedule;
mod tensor_hash;
pub mod text_score;
mod trained;
pub mod trainer;

pub use assemble::{Shapes, build_model, settle_shapes};
pub use config::TrainConfig;
pub use error::TrainError;
pub use export::{ExportSource, export_hf, is_exported_name};
pub use out_dir::OutDir;
pub use out_of_memory::{is_out_of_memory, memory_shortage};
pub use run::{Run, Summary};
pub use trained::{TrainedModel, TrainedSource, part_of_run, shape_of_run, weights_of_run};
