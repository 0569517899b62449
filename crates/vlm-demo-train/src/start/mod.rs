//! The starting weights of the demo.
//!
//! The vision encoder learns to name what each patch of an image shows; the language model learns
//! from text alone to describe scenes and to answer questions about them. They are trained apart
//! from each other: joining them is what the demo's training run does, with the ordinary trainer.

mod draw_ahead;
mod language_weights;
mod learner;
mod replica;
mod starting_weights;
mod text_map;
mod text_rows;
mod tokenizer;
mod vision_targets;
mod vision_weights;

pub use starting_weights::{Part, StartingWeightsOptions, make_starting_weights};
