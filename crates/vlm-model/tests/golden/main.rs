//! Golden tests: this crate reproduces the numbers of the Python reference (MiniMind-V, commit
//! 26de815, torch 2.11.0, CPU, float32). The files and the tolerances are described in
//! `tests/golden/README.md` at the top of the workspace.

mod autocast;
mod checkpointing;
mod dense;
mod families;
mod fixtures;
mod generate;
mod hugging_face;
mod moe;
mod multi_image;
mod sampling;
mod vision;
