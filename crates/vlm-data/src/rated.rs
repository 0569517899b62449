//! A source without the rows whose turns are all rated too low. They are found once, when it is opened,
//! by reading every row's text: a row that is not wanted is no rejected row.

use std::sync::Arc;

use rayon::prelude::*;

use crate::error::DataError;
use crate::mixture::Composed;
use crate::reject::RejectReason;
use crate::row_error::RowError;
use crate::source::RowSource;

/// Some rows of a source.
pub(crate) struct Rated {
    source: Arc<dyn RowSource>,
    /// Their indices there.
    kept: Vec<u32>,
}

impl Rated {
    /// The rows of `source` that have a turn rated high enough; other faults of rows are told when
    /// they are read.
    ///
    /// # Errors
    /// No such row, or so many that they cannot be counted; a disk that fails.
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
                "none of {num_rows} rows has a turn rated as high as wanted"
            )));
        }
        tracing::info!("{} of {num_rows} rows have a turn rated as high as wanted", kept.len());
        Ok(Self { source, kept })
    }
}

impl Composed for Rated {
    fn num_rows(&self) -> usize {
        self.kept.len()
    }

    fn part_of(&self, index: usize) -> (&dyn RowSource, usize) {
        // Past the last row the source says that there is none.
        let row = self.kept.get(index).map_or(usize::MAX, |&row| row as usize);
        (self.source.as_ref(), row)
    }

    fn sources(&self) -> Vec<&dyn RowSource> {
        vec![self.source.as_ref()]
    }
}
