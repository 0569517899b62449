//! The contents of `summary.json`.

use std::collections::BTreeMap;

use vlm_data::RejectReason;

/// The summary of a run, as `summary.json` holds it.
#[non_exhaustive]
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// `finished` or `interrupted`.
    pub status: &'static str,
    /// Number of steps (micro-batches) done.
    pub steps: u64,
    /// Number of rows trained on.
    pub samples: u64,
    /// Duration of the training in this process, in seconds.
    pub wall_secs: f64,
    /// Loss of the last micro-batch that had one, in nats per supervised token.
    pub final_loss: Option<f64>,
    /// Mean number of rows per second over `wall_secs`.
    pub samples_per_sec: f64,
    /// Largest amount of memory in use, in bytes.
    pub peak_memory_bytes: u64,
    /// Number of distinct rejected rows.
    pub rejected_rows: u64,
    /// Number of rows that were rejected for each reason; on rank 0 only.
    pub rejected_by_reason: BTreeMap<RejectReason, usize>,
    /// Number of updates skipped because loss or gradient was not finite.
    pub skipped_updates: u64,
    /// Number of steps without a supervised token.
    pub empty_steps: u64,
    /// Number of elements of the trained tensors.
    pub trainable_parameters: i64,
    /// Time that the training waited for checkpoints, the last one included, in seconds.
    pub save_wait_secs: f64,
    /// Further entries by name: the cost of the communication, and entries that the caller adds.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}
