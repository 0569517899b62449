//! The embedded demo: how its starting weights are made, and how its result is told.
//!
//! The vision encoder learns to name what each patch of a picture shows; the language model learns
//! to describe scenes from text alone. They never meet here: putting them together is the job of
//! the alignment, which runs through the ordinary trainer.

mod contact_sheet;
mod draw_ahead;
mod font;
mod held_out;
mod language_weights;
mod learner;
mod replica;
mod report;
mod starting_weights;
mod vision_targets;
mod vision_weights;

pub use contact_sheet::{SheetEntry, draw_contact_sheet};
pub use held_out::{Examined, HeldOut, Pictures};
pub use report::{Accuracy, DemoReport, GroupAccuracy};
pub use starting_weights::{Part, StartingWeightsOptions, make_starting_weights};

/// The alignment: what `vlm pretrain` sets when it runs the demo and the user says nothing.
pub mod alignment {
    /// Passes over the demo's pictures.
    pub const EPOCHS: u64 = 2;
    /// Rows a step.
    pub const BATCH_SIZE: usize = 32;
    /// Reference rate of the schedule.
    pub const LEARNING_RATE: f64 = 2e-3;
    /// Steps between two log lines.
    pub const LOG_INTERVAL: u64 = 25;
    /// Steps between two checkpoints.
    pub const SAVE_INTERVAL: u64 = 250;
}
