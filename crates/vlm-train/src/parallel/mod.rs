//! Data-parallel training: each process trains on its part of every batch, the gradients are
//! averaged during the backward pass, and all weights stay equal. A run with a single process uses
//! the same [`World`].
//!
//! This module does not depend on what starts the processes: a launcher, torchrun, Slurm or
//! Kubernetes. All of them describe the processes in environment variables ([`LaunchEnv`]).

mod agreement;
mod gradient_sync;
mod heartbeat;
mod heartbeat_thread;
mod launch_env;
mod peers;
mod phase;
mod rank_info;
mod shards;
mod step_stats;
mod timeout_budget;
mod world;

pub use agreement::{RankIdentity, compare_ranks};
pub use gradient_sync::{GradientSync, gradient_bytes, scale_gradients};
pub use launch_env::LaunchEnv;
pub use phase::Phase;
pub use shards::{Piece, Shards};
pub use step_stats::{GlobalStepStats, LocalStepStats};
pub use world::World;
