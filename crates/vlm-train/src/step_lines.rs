//! Files of JSON lines that a run appends to at its steps. A continued run removes the lines of the
//! steps that it repeats.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::TrainError;

/// A file of JSON lines that each have a field `step`.
#[derive(Debug)]
pub struct StepLines {
    path: PathBuf,
    file: File,
}

impl StepLines {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(|e| TrainError::at(path, format!("cannot write: {e}")))?,
        })
    }

    /// Opens the file for a run that continues after `step`. Lines of later steps are removed,
    /// because the run repeats these steps.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn open_after(path: &Path, step: u64) -> Result<Self, TrainError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(TrainError::at(path, format!("cannot read: {error}")));
            }
        };
        // A killed run may have left an incomplete line, which does not parse.
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

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line in a single write.
    ///
    /// # Errors
    /// A failure of the file system such as a full disk, with the path; the file was removed during
    /// the run.
    pub fn append(&mut self, line: &serde_json::Value) -> Result<(), TrainError> {
        // A write to a removed file succeeds, but is lost.
        if self.file.metadata().is_ok_and(|found| found.nlink() == 0) {
            return Err(TrainError::at(
                &self.path,
                "the file was removed during the run, so its lines can no longer be written",
            ));
        }
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|e| TrainError::at(&self.path, format!("cannot write: {e}")))
    }
}

/// The step of a line; other fields are not read.
#[derive(serde::Deserialize)]
struct Step {
    step: u64,
}

/// The last step with a line in the file at `path`; `None` without a file or a line.
pub fn last_step(path: &Path) -> Option<u64> {
    let text = std::fs::read(path).ok()?;
    let lines = text.split(|&byte| byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice::<Step>(line).ok()).map(|line| line.step).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_steps_that_a_continued_run_repeats_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        StepLines::open_after(&path, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
        let none = folder.path().join("none.jsonl");
        StepLines::open_after(&none, 0).unwrap();
        assert_eq!(std::fs::read_to_string(&none).unwrap(), "");
    }
}
