//! Checks rows on several threads and returns the outcomes in order. The number of rows in memory
//! is bounded.

use std::ops::Range;

use super::check::{KeptRow, RowChecker};
use crate::error::DataError;
use crate::ordered_map::OrderedMap;
use crate::reject::Rejected;
use crate::try_row::try_row;

/// Number of rows in a task of a thread: few, because each may have a large image.
const ROWS_PER_TASK: usize = 8;

/// The result of checking a row.
pub(super) type RowOutcome = Result<Box<KeptRow>, Rejected>;

type Outcomes = Result<Vec<RowOutcome>, DataError>;

pub(super) struct Pipeline {
    /// Rows that were not passed to the threads yet.
    rows: Range<usize>,
    checks: OrderedMap<Range<usize>, Outcomes>,
    num_pending: usize,
    max_pending: usize,
    /// Outcomes that were received but not returned yet.
    ready: std::vec::IntoIter<RowOutcome>,
}

impl Pipeline {
    pub(super) fn start(
        checker: RowChecker,
        rows: Range<usize>,
        num_workers: usize,
    ) -> Result<Self, DataError> {
        let check = |checker: &RowChecker, row| {
            try_row(checker.source.as_ref(), row, || checker.check(row).map(Box::new))
        };
        let check_rows = move |rows: Range<usize>| rows.map(|row| check(&checker, row)).collect();
        let checks = OrderedMap::start("prepare", num_workers, check_rows)
            .map_err(|source| DataError::Threads { source })?;
        let max_pending = num_workers.max(1) * 3;
        Ok(Self { rows, checks, num_pending: 0, max_pending, ready: Vec::new().into_iter() })
    }

    /// The outcome of the next row; call it once per row.
    pub(super) fn next(&mut self) -> Result<RowOutcome, DataError> {
        loop {
            if let Some(outcome) = self.ready.next() {
                return Ok(outcome);
            }
            while self.num_pending < self.max_pending && !self.rows.is_empty() {
                let end = (self.rows.start + ROWS_PER_TASK).min(self.rows.end);
                self.checks.submit(self.rows.start..end);
                self.rows.start = end;
                self.num_pending += 1;
            }
            let outcomes = self.checks.wait_next().ok_or_else(|| {
                DataError::Internal("more rows were requested than the source has".into())
            })?;
            self.num_pending -= 1;
            self.ready = outcomes?.into_iter();
        }
    }
}
