//! Where rows come from.

use crate::reject::Reject;
use crate::rows::Row;

/// Rows by index, with the bytes of their images. Many threads read at once.
pub trait RowSource: Send + Sync {
    /// Number of rows, unusable ones included.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `index`, from 0.
    ///
    /// # Errors
    /// Why the row cannot be used.
    fn row(&self, index: usize) -> Result<Row, Reject>;

    /// The encoded bytes (JPEG, PNG, …) of image `k` of `row`.
    ///
    /// # Errors
    /// Why the image cannot be had.
    fn image_bytes(&self, row: &Row, k: usize) -> Result<Vec<u8>, Reject>;

    /// Where a person finds the row: `captions.jsonl:17`.
    fn locate(&self, index: usize) -> String;

    /// Rough length of the row's text, in any unit, without parsing it. Only compared with that of
    /// other rows, to put rows of like length into a batch; the same at every call.
    fn length_hint(&self, _index: usize) -> u64 {
        0
    }
}
