//! The embedded demo: how its starting weights are made, and how its result is told.
//!
//! The vision encoder learns to name what each patch of a picture shows; the language model learns
//! to describe scenes from text alone. They never meet here: putting them together is the job of
//! the alignment, which runs through the ordinary trainer.

mod contact_sheet;
mod draw_ahead;
mod font;
mod language_weights;
mod learner;
mod replica;
mod report;
mod starting_weights;
mod vision_targets;
mod vision_weights;

pub use contact_sheet::{SheetEntry, draw_contact_sheet};
pub use report::{Accuracy, DemoReport, GroupAccuracy};
pub use starting_weights::{Part, StartingWeightsOptions, make_starting_weights};
