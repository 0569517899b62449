//! A source without the rows whose turns all have too low a rating. These rows are found once, when
//! the source is opened, by reading the text of every row; they do not count as rejected.

use std::sync::Arc;

use rayon::prelude::*;
use vlm_display::count;

use crate::error::DataError;
use crate::mixture::CompositeSource;
use crate::reject::RejectReason;
use crate::row_error::RowError;
use crate::source::RowSource;

/// The rows of a source that have a turn with a high enough rating.
pub(crate) struct RatingFilter {
    source: Arc<dyn RowSource>,
    /// Indices of these rows in the source.
    kept: Vec<u32>,
}

impl RatingFilter {
    /// The rows of `source` that have a turn with a high enough rating. Other faults of a row are
    /// reported when it is read.
    ///
    /// # Errors
    /// No such row, or too many rows to count; a disk that fails.
    pub(crate) fn new(source: Arc<dyn RowSource>) -> Result<Self, DataError> {
        let num_rows = u32::try_from(source.len()).map_err(|_| {
            DataError::Settings(format!("{} rows are too many to filter by rating", source.len()))
        })?;
        let is_kept = |index: u32| match source.turns(index as usize) {
            Ok(_) => Ok(Some(index)),
            Err(RowError::Reject(reject)) => {
                Ok(Some(index).filter(|_| reject.reason != RejectReason::RatingTooLow))
            }
            Err(RowError::Fatal(error)) => Err(error),
        };
        let kept: Result<Vec<_>, DataError> =
            (0..num_rows).into_par_iter().with_min_len(64).map(is_kept).collect();
        let kept: Vec<u32> = kept?.into_iter().flatten().collect();
        if kept.is_empty() {
            return Err(DataError::Settings(format!(
                "none of {} has a turn with the smallest rating in `min_rating`; lower it",
                count(num_rows, "row")
            )));
        }
        let all = count(num_rows, "row");
        tracing::info!("rows that have a turn with a high enough rating: {} of {all}", kept.len());
        Ok(Self { source, kept })
    }
}

impl CompositeSource for RatingFilter {
    fn num_rows(&self) -> usize {
        self.kept.len()
    }

    fn part_of(&self, index: usize) -> (&dyn RowSource, usize) {
        // For an index past the last row the source reports that there is no such row.
        let row = self.kept.get(index).map_or(usize::MAX, |&row| row as usize);
        (self.source.as_ref(), row)
    }

    fn sources(&self) -> Vec<&dyn RowSource> {
        vec![self.source.as_ref()]
    }
}
