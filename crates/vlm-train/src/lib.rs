//! Training: configuration, optimizer, learning rate schedule, training loop, checkpoints, metrics.
//!
//! Connects `vlm-data` and `vlm-model`, which do not depend on each other. This crate uses no
//! command line and no terminal: a run reports through [`EventSink`]s, and logs through `tracing`.

pub mod cache_features;
mod checkpoint;
pub mod config;
mod dir_lock;
mod encoder_files;
mod error;
mod event_file;
mod events;
mod leaves;
mod machine;
mod meter;
mod metrics;
mod model_part;
pub mod optimizer;
mod optimizer_slot;
mod out_dir;
mod out_of_memory;
pub mod parallel;
mod profile;
mod rank_device;
mod recent_losses;
mod requests;
mod run;
mod samples;
mod saver;
mod scaler;
mod schedule;
mod state_dict;
mod step_lines;
mod tensor_hash;
mod train_state;
pub mod trainer;
mod utilization;

pub use checkpoint::{Checkpoint, LoadError, load as load_checkpoint};
pub use config::TrainConfig;
pub use error::TrainError;
pub use event_file::EventFile;
pub use events::{EvalLine, Event, EventSink, LogLine, StepReport};
pub use metrics::MetricsFile;
pub use out_dir::OutDir;
pub use out_of_memory::{is_out_of_memory, out_of_memory_message};
pub use requests::Requests;
pub use run::{Run, Summary};
pub use state_dict::StateDict;
pub use train_state::{Counters, TrainState};
