//! Training: configuration, optimizer, schedule, the loop, checkpoints, metrics.
//!
//! Joins `vlm-data` and `vlm-model`, which do not know each other. Knows no command line and
//! prints nothing but through `tracing` and the progress bar.

pub mod cache_features;
pub mod checkpoint;
pub mod config;
pub mod demo;
mod dir_lock;
mod encoder_files;
mod error;
pub mod event_file;
mod leaves;
pub mod metrics;
pub mod optimizer;
mod out_dir;
mod out_of_memory;
pub mod parallel;
mod rank_device;
pub mod report;
pub mod run;
pub mod scaler;
pub mod schedule;
mod tensor_hash;
pub mod trainer;

pub use config::TrainConfig;
pub use error::TrainError;
pub use out_dir::OutDir;
pub use out_of_memory::{is_out_of_memory, memory_shortage};
pub use run::{Run, Summary};
