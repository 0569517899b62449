//! The section of the page about rows that were not trained on.

use serde::{Serialize, Serializer};
use vlm_display::Table;

/// Name of the file in a run's folder with a [`HeldOutSection`] as JSON.
pub const HELD_OUT_FILE: &str = "held_out.json";

/// A section of the page about rows that were not trained on.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOutSection {
    /// Scores.
    pub scores: Table,
    /// Some of the rows.
    pub examples: Vec<Example>,
}

/// A row with what the model generated for it.
#[derive(Debug, Clone, Serialize)]
pub struct Example {
    /// The row's image, as a PNG file.
    #[serde(rename = "image", serialize_with = "as_data_url")]
    pub png: Vec<u8>,
    /// The row's first question.
    #[serde(rename = "question")]
    pub prompt: String,
    /// The row's answer to it.
    pub expected: String,
    /// The model's answer.
    pub generated: String,
}

fn as_data_url<S: Serializer>(png: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&data_url(png))
}

/// The address of an image that is part of the page.
pub(crate) fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64::encode(png))
}
