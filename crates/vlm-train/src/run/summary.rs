//! What a run came to.

use std::collections::BTreeMap;

use vlm_data::RejectReason;

/// What a run came to; `summary.json` holds this and more.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// `finished` or `interrupted`.
    pub status: &'static str,
    /// Micro-batches done.
    pub steps: u64,
    /// Rows trained on.
    pub samples: u64,
    /// Seconds of training, of this process.
    pub wall_secs: f64,
    /// Loss of the last micro-batch, in nats a supervised token.
    pub final_loss: Option<f64>,
    /// Rows a second over all of `wall_secs`.
    pub samples_per_sec: f64,
    /// Most memory used at once.
    pub peak_memory_bytes: u64,
    /// Rejected rows.
    pub rejected_rows: u64,
    /// How many rows were rejected for each reason; on rank 0.
    pub rejected_by_reason: BTreeMap<RejectReason, usize>,
    /// Updates left out as not finite.
    pub skipped_updates: u64,
    /// Micro-batches without anything to learn.
    pub empty_steps: u64,
    /// Elements of the trained tensors.
    pub trainable_parameters: i64,
    /// What else there is to say, by name.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}
