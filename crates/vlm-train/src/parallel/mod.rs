//! Processes that train one model together: each takes its share of every batch, gradients are
//! averaged while the backward pass runs, and all weights stay the same.
//!
//! Knows nothing of who starts the processes: a launcher, torchrun, Slurm or Kubernetes; they all
//! speak through the environment ([`LaunchEnv`]).

mod agreement;
mod launch_env;
mod patience;
mod progress;
mod reporter;
mod share;
pub mod start_up;
mod team;

pub use agreement::{Identity, agree};
pub use launch_env::LaunchEnv;
pub use progress::Phase;
pub use share::{Share, Totals};
pub use team::Team;

use tch::Tensor;

/// Bytes of gradients that every rank sends into the sum at each update, whatever the world's size
/// (a ring passes on `2 · (world_size - 1) / world_size` times as many).
pub fn gradient_bytes(params: &[(String, Tensor)]) -> u64 {
    params.iter().map(|(_, t)| (t.numel() * t.kind().elt_size_in_bytes()) as u64).sum()
}
