//! The folder a run writes to: made and tried before anything is computed, never shared by two
//! runs, and written so that a file is there whole or not at all.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::TrainError;

/// What shows that a folder already holds a run.
const TRACES: [&str; 3] = ["metrics.jsonl", "summary.json", "checkpoints"];

/// A run's folder.
#[derive(Debug, Clone)]
pub struct OutDir {
    path: PathBuf,
}

impl OutDir {
    /// Makes the folder and proves that it can be written. A folder that already holds a run is
    /// taken only to continue it.
    ///
    /// # Errors
    /// It holds a run and `continues` is false, cannot be made, or cannot be written.
    pub fn prepare(path: &Path, continues: bool) -> Result<Self, TrainError> {
        if path.exists() && !path.is_dir() {
            return Err(TrainError::Usage(format!(
                "--out-dir {} is a file; expected a folder, or a name that is free",
                path.display()
            )));
        }
        if !continues && let Some(trace) = Self::trace_of_a_run(path) {
            return Err(TrainError::Usage(format!(
                "--out-dir {} already holds a run ({trace} is there), and nothing is overwritten; \
                 continue it with --resume auto, or choose another --out-dir",
                path.display()
            )));
        }
        let out_dir = Self { path: path.to_owned() };
        out_dir.prove_writable().map_err(|e| {
            TrainError::Usage(format!(
                "--out-dir {} cannot be written: {e}; choose a folder that you may write to",
                path.display()
            ))
        })?;
        Ok(out_dir)
    }

    /// The folder that another process prepares and writes: this one only names it.
    pub fn of_another(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn trace_of_a_run(path: &Path) -> Option<String> {
        let named = TRACES.iter().find(|name| path.join(name).exists()).map(|&n| n.to_owned());
        named.or_else(|| {
            let names = fs::read_dir(path).ok()?.flatten();
            let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.find(|name| name.starts_with("pretrain_vlm_") || name.starts_with("sft_vlm_"))
        })
    }

    fn prove_writable(&self) -> std::io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let probe = self.path.join(format!(".writable-{}", std::process::id()));
        let mut file = fs::File::create(&probe)?;
        let written = file.write_all(b"probe");
        let removed = fs::remove_file(&probe);
        written.and(removed)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a value as JSON, whole or not at all.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), TrainError> {
        write_json(&self.join(name), value)
    }
}

/// Writes a value as indented JSON, whole or not at all.
///
/// # Errors
/// The system's, with the path.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| TrainError::at(path, e))?;
    text.push(b'\n');
    vlm_torch::write_atomically(path, |file| {
        file.write_all(&text).map_err(|e| TrainError::at(path, e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_holds_a_run_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metrics.jsonl"), "kept").unwrap();
        let error = OutDir::prepare(folder.path(), false).unwrap_err();
        assert!(matches!(&error, TrainError::Usage(m) if m.contains("--resume")), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap(), "kept");
        assert!(OutDir::prepare(folder.path(), true).is_ok());
    }

    #[test]
    fn weights_waiting_in_the_folder_are_no_run() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lm_512.pth"), "weights").unwrap();
        assert!(OutDir::prepare(folder.path(), false).is_ok());
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out");
        fs::write(&file, "").unwrap();
        assert!(OutDir::prepare(&file, false).unwrap_err().to_string().contains("is a file"));
    }
}
