//! The models of the embedded demo: training of the starting weights, and evaluation on the
//! held-out scenes of `vlm-demo`. This crate uses only the public API of the other crates.

mod accuracy;
mod held_out;
mod start;

pub use accuracy::{Accuracy, DemoScores, GroupAccuracy};
pub use held_out::{Evaluation, HeldOut, Images};
pub use start::{Part, StartingWeightsOptions, make_starting_weights};
