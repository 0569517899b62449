//! The configuration of a training run, which is declared in the crate `vlm-config`.

pub use vlm_config::*;
