//! Checks rows in threads and hands the outcomes on in order. How many are in the making at once is
//! bounded, and with it the memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};

use super::check::{KeptRow, RowChecker};
use crate::error::DataError;
use crate::reject::{Reject, Rejected};
use crate::worker::panic_message;

/// Rows that a thread takes at once: few, since each may carry a large picture.
const ROWS_A_TASK: usize = 8;

/// What came of a row.
pub(super) enum RowOutcome {
    Kept(Box<KeptRow>),
    Rejected(Rejected),
}

type Outcomes = Result<Vec<RowOutcome>, DataError>;

pub(super) struct Pipeline {
    rows: Range<usize>,
    tasks: Option<Sender<Range<usize>>>,
    made: Receiver<(usize, Outcomes)>,
    threads: Vec<JoinHandle<()>>,
    /// Row at which the next task to hand out begins.
    next_planned: usize,
    /// Tasks that may be in the making.
    window: usize,
    /// By the row at which they begin.
    early: BTreeMap<usize, Outcomes>,
    /// Outcomes not handed on yet, and the row at which the next ones begin.
    ready: std::vec::IntoIter<RowOutcome>,
    next: usize,
}

impl Pipeline {
    pub(super) fn start(checker: Arc<RowChecker>, rows: Range<usize>, num_workers: usize) -> Self {
        let num_workers = num_workers.max(1);
        let (tasks, task_receiver) = crossbeam_channel::unbounded::<Range<usize>>();
        let (made_sender, made) = crossbeam_channel::unbounded();
        let threads = (0..num_workers)
            .map(|_| {
                let (checker, tasks) = (Arc::clone(&checker), task_receiver.clone());
                let made = made_sender.clone();
                std::thread::spawn(move || work(&checker, &tasks, &made))
            })
            .collect();
        Self {
            next_planned: rows.start,
            next: rows.start,
            rows,
            tasks: Some(tasks),
            made,
            threads,
            window: num_workers * 3,
            early: BTreeMap::new(),
            ready: Vec::new().into_iter(),
        }
    }

    /// The next row's outcome; to be called once for each row.
    pub(super) fn next(&mut self) -> Result<RowOutcome, DataError> {
        loop {
            if let Some(outcome) = self.ready.next() {
                return Ok(outcome);
            }
            self.plan();
            let outcomes = self.wait()?;
            self.next += outcomes.len();
            self.ready = outcomes.into_iter();
        }
    }

    fn plan(&mut self) {
        let limit = (self.next + self.window * ROWS_A_TASK).min(self.rows.end);
        while self.next_planned < limit {
            let end = (self.next_planned + ROWS_A_TASK).min(self.rows.end);
            if let Some(tasks) = &self.tasks {
                // The channel is unbounded and its receivers live as long as the threads.
                let _ = tasks.send(self.next_planned..end);
            }
            self.next_planned = end;
        }
    }

    fn wait(&mut self) -> Outcomes {
        loop {
            if let Some(outcomes) = self.early.remove(&self.next) {
                return outcomes;
            }
            let Ok((start, outcomes)) = self.made.recv() else {
                return Err(DataError::Settings(
                    "all threads ended before their work did; this is a defect of the program: \
                     please report it"
                        .into(),
                ));
            };
            self.early.insert(start, outcomes);
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.tasks = None;
        // What is queued need not be made.
        self.made = crossbeam_channel::never();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(checker: &RowChecker, tasks: &Receiver<Range<usize>>, made: &Sender<(usize, Outcomes)>) {
    for rows in tasks {
        let start = rows.start;
        let outcomes = rows.map(|row| check(checker, row)).collect();
        if made.send((start, outcomes)).is_err() {
            return;
        }
    }
}

fn check(checker: &RowChecker, row: usize) -> Result<RowOutcome, DataError> {
    let location = || checker.source.locate(row);
    // A decoder that panics on a hostile file must not take the work with it unnamed.
    match catch_unwind(AssertUnwindSafe(|| checker.check(row))) {
        Ok(Ok(kept)) => Ok(RowOutcome::Kept(Box::new(kept))),
        Ok(Err(obstacle)) => {
            let Reject { reason, detail } = obstacle.at(location())?;
            Ok(RowOutcome::Rejected(Rejected { row, location: location(), reason, detail }))
        }
        Err(panic) => Err(DataError::WorkerPanic {
            location: location(),
            message: panic_message(panic.as_ref()),
        }),
    }
}
