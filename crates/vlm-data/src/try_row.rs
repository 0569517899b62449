//! Runs the work on one row, and sorts what can go wrong with it into rejected rows and fatal errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::DataError;
use crate::ordered_map::panic_message;
use crate::reject::{Reject, Rejected};
use crate::row_error::RowError;
use crate::source::RowSource;

/// The result of `work` on row `row` of `source`, or the rejected row.
///
/// # Errors
/// A disk that fails, or a panic, such as that of a decoder on a hostile file. Both name the row.
pub(crate) fn try_row<T>(
    source: &dyn RowSource,
    row: usize,
    work: impl FnOnce() -> Result<T, RowError>,
) -> Result<Result<T, Rejected>, DataError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(made)) => Ok(Ok(made)),
        Ok(Err(error)) => {
            let location = source.locate(row);
            let Reject { reason, detail } = error.at(location.clone())?;
            Ok(Err(Rejected { row, location, reason, detail }))
        }
        Err(panic) => Err(DataError::WorkerPanic {
            location: source.locate(row),
            message: panic_message(panic.as_ref()),
        }),
    }
}
