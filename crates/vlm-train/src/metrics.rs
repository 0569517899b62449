//! Writes `metrics.jsonl`: one JSON object for each logged step and each evaluation.

use std::path::Path;

use crate::TrainError;
use crate::events::{Event, EventSink};
use crate::step_lines::StepLines;

/// Appends the log lines and evaluations of a run to a file.
#[derive(Debug)]
pub struct MetricsFile(StepLines);

impl MetricsFile {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        StepLines::open(path).map(Self)
    }

    /// Opens the file for a run that continues after `step`. Lines of later steps are removed,
    /// because the run repeats these steps.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn open_after(path: &Path, step: u64) -> Result<Self, TrainError> {
        StepLines::open_after(path, step).map(Self)
    }
}

impl EventSink for MetricsFile {
    /// Appends the line of an event, if it has one.
    ///
    /// # Errors
    /// A failure of the file system such as a full disk, with the path; the file was removed during
    /// the run.
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        match event.to_json_line().map_err(|e| TrainError::at(self.0.path(), e))? {
            Some(line) => self.0.append(&line),
            None => Ok(()),
        }
    }
}
