//! The folder a run writes to: made and tried before anything is computed, never shared by two
//! runs, and written so that a file is there whole or not at all.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::TrainError;
use crate::config::Stage;

/// What shows that a folder already holds a run.
const TRACES: [&str; 3] = ["metrics.jsonl", "summary.json", "checkpoints"];

/// What a run writes under fixed names.
const RECORDS: [&str; 7] = [
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "rejected.jsonl",
    "checkpoints",
    "report.html",
    "heldout.png",
];
/// How the names of TensorBoard's files begin.
const EVENTS: &str = "events.out.tfevents.";

/// A run's folder.
#[derive(Debug, Clone)]
pub struct OutDir {
    path: PathBuf,
    /// A finished run of the stage before, whose records are still here.
    earlier: Option<Stage>,
}

/// The stage of the run in `path`, if it has finished.
fn finished_stage(path: &Path) -> Option<Stage> {
    let read = |name: &str| -> Option<serde_json::Value> {
        serde_json::from_str(&fs::read_to_string(path.join(name)).ok()?).ok()
    };
    let finished = read("summary.json")?["status"] == "finished";
    let stage = read("config.json")?["run"]["stage"].take();
    // Before there were two stages, none was written down.
    let stage =
        if stage.is_null() { Some(Stage::Pretrain) } else { serde_json::from_value(stage).ok() };
    stage.filter(|_| finished)
}

fn goes_before(earlier: Stage, stage: Stage) -> bool {
    (earlier, stage) == (Stage::Pretrain, Stage::Sft)
}

impl OutDir {
    /// Makes the folder and proves that it can be written. A folder that already holds a run is
    /// taken only to continue it, or for a run of the second stage after a finished one of the
    /// first, whose records [`Self::set_aside_earlier`] then moves.
    ///
    /// # Errors
    /// It holds a run and `continues` is false, cannot be made, or cannot be written.
    pub fn prepare(path: &Path, stage: Stage, continues: bool) -> Result<Self, TrainError> {
        if path.exists() && !path.is_dir() {
            return Err(TrainError::Usage(format!(
                "--out-dir {} is a file; expected a folder, or a name that is free",
                path.display()
            )));
        }
        let earlier = finished_stage(path).filter(|&earlier| goes_before(earlier, stage));
        let is_free = earlier.is_some();
        if !(continues || is_free)
            && let Some(trace) = Self::trace_of_a_run(path, stage)
        {
            return Err(TrainError::Usage(format!(
                "--out-dir {} already holds a run ({trace} is there), and nothing is overwritten; \
                 continue it with --resume auto, or choose another --out-dir",
                path.display()
            )));
        }
        let out_dir = Self { path: path.to_owned(), earlier };
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
        Self { path: path.to_owned(), earlier: None }
    }

    /// Whether the folder holds a finished run of the stage before `stage`, and none of `stage`.
    pub fn holds_earlier(path: &Path, stage: Stage) -> bool {
        finished_stage(path).is_some_and(|earlier| goes_before(earlier, stage))
    }

    /// Moves the records of a finished run of the stage before into a folder of that stage's name;
    /// its weights stay where they are. Does nothing where there was none.
    ///
    /// # Errors
    /// The system's, with the path; records that were set aside before and would be overwritten.
    pub fn set_aside_earlier(&mut self) -> Result<(), TrainError> {
        let Some(stage) = self.earlier.take() else { return Ok(()) };
        let target = self.join(stage.name());
        fs::create_dir(&target).map_err(|e| TrainError::at(&target, e))?;
        let entries = fs::read_dir(&self.path).map_err(|e| TrainError::at(&self.path, e))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if RECORDS.contains(&name.as_str()) || name.starts_with(EVENTS) {
                let (from, to) = (entry.path(), target.join(&name));
                fs::rename(&from, &to).map_err(|e| TrainError::at(&from, e))?;
            }
        }
        tracing::info!(
            "the records of the finished {} run are now in {}",
            stage.name(),
            target.display()
        );
        Ok(())
    }

    fn trace_of_a_run(path: &Path, stage: Stage) -> Option<String> {
        let named = TRACES.iter().find(|name| path.join(name).exists()).map(|&n| n.to_owned());
        named.or_else(|| {
            let names = fs::read_dir(path).ok()?.flatten();
            let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.find(|name| {
                // The first stage's weights are what the second begins with.
                name.starts_with("sft_vlm_")
                    || (stage == Stage::Pretrain && name.starts_with("pretrain_vlm_"))
            })
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
        let error = OutDir::prepare(folder.path(), Stage::Pretrain, false).unwrap_err();
        assert!(matches!(&error, TrainError::Usage(m) if m.contains("--resume")), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap(), "kept");
        assert!(OutDir::prepare(folder.path(), Stage::Pretrain, true).is_ok());
    }

    #[test]
    fn weights_waiting_in_the_folder_are_no_run() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lm_512.pth"), "weights").unwrap();
        assert!(OutDir::prepare(folder.path(), Stage::Pretrain, false).is_ok());
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out");
        fs::write(&file, "").unwrap();
        assert!(
            OutDir::prepare(&file, Stage::Pretrain, false)
                .unwrap_err()
                .to_string()
                .contains("is a file")
        );
    }

    #[test]
    fn the_second_stage_follows_a_finished_first_one_and_sets_its_records_aside() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("pretrain_vlm_512.pth", "weights");
        write("metrics.jsonl", "kept");
        write("config.json", r#"{"run": {"stage": "pretrain"}}"#);
        write("summary.json", r#"{"status": "interrupted"}"#);
        assert!(OutDir::prepare(folder.path(), Stage::Sft, false).is_err(), "not finished");
        write("summary.json", r#"{"status": "finished"}"#);
        assert!(OutDir::prepare(folder.path(), Stage::Pretrain, false).is_err(), "the same stage");
        let mut out_dir = OutDir::prepare(folder.path(), Stage::Sft, false).unwrap();
        out_dir.set_aside_earlier().unwrap();
        assert_eq!(fs::read_to_string(out_dir.join("pretrain/metrics.jsonl")).unwrap(), "kept");
        assert!(!out_dir.join("metrics.jsonl").exists());
        assert!(out_dir.join("pretrain_vlm_512.pth").exists());
    }
}
