//! `metrics.jsonl`: one JSON object per logged step and per evaluation.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::TrainError;
use crate::events::{Event, EventSink};

/// Appends the log lines and evaluations of a run to a file.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(|e| TrainError::at(path, format!("cannot write metrics: {e}")))?,
        })
    }

    /// Opens the file for a run that continues after `step`. Lines of later steps, which a killed run
    /// may have left, are removed: the run does these steps again.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn open_after(path: &Path, step: u64) -> Result<Self, TrainError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(TrainError::at(path, format!("cannot read metrics: {error}")));
            }
        };
        // A line that a killed run left half-written does not parse.
        let is_kept = |line: &&[u8]| {
            line.ends_with(b"\n")
                && serde_json::from_slice::<Step>(line).is_ok_and(|line| line.step <= step)
        };
        let kept: Vec<&[u8]> =
            text.split_inclusive(|&byte| byte == b'\n').filter(is_kept).collect();
        let kept = kept.concat();
        if kept != text {
            vlm_torch::write_atomically(path, |file| {
                file.write_all(&kept).map_err(|e| TrainError::at(path, e))
            })?;
        }
        Self::open(path)
    }

    /// Writes one line, whole.
    fn append(&mut self, line: &serde_json::Value) -> Result<(), TrainError> {
        // What is written to a removed file succeeds and is lost.
        if self.file.metadata().is_ok_and(|found| found.nlink() == 0) {
            return Err(TrainError::at(
                &self.path,
                "the file was removed while the run was writing to it, and nothing more is written",
            ));
        }
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|e| TrainError::at(&self.path, format!("cannot write metrics: {e}")))
    }
}

impl EventSink for MetricsFile {
    /// Writes one line for an event that has one.
    ///
    /// # Errors
    /// The system's, with the path (a full disk, say); the file was removed meanwhile.
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        match event.to_json_line().map_err(|e| TrainError::at(&self.path, e))? {
            Some(line) => self.append(&line),
            None => Ok(()),
        }
    }
}

/// The number of the step of a line; other fields are not read.
#[derive(serde::Deserialize)]
struct Step {
    step: u64,
}

/// The last step that the file at `path` has a line for; `None` where there is no file or no line.
pub fn last_step(path: &Path) -> Option<u64> {
    let text = std::fs::read(path).ok()?;
    let lines = text.split(|&byte| byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice::<Step>(line).ok()).map(|line| line.step).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continued_log_holds_no_step_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        MetricsFile::open_after(&path, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
        let none = folder.path().join("none.jsonl");
        MetricsFile::open_after(&none, 0).unwrap();
        assert_eq!(std::fs::read_to_string(&none).unwrap(), "");
    }
}
