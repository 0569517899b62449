//! Training of the demo's starting weights.
//!
//! The vision encoder learns to classify what each patch of an image shows. The language model
//! learns from text alone to describe scenes and to answer questions about them. The two are
//! trained separately; the demo's training run connects them, with the trainer of every other run.

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
