//! The embedded demo's models: how the starting weights are made, and how a run's model is evaluated
//! on the held-out scenes of `vlm-demo`. Uses the other crates through what they export to everyone.

mod accuracy;
mod held_out;
mod start;

pub use accuracy::{Accuracy, DemoScores, GroupAccuracy};
pub use held_out::{Evaluation, HeldOut, Images};
pub use start::{Part, StartingWeightsOptions, make_starting_weights};
