//! Vision encoders, by their published formats.

mod clip;

pub use clip::ClipVision;
