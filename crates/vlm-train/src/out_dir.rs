//! The folder that a run writes to. It is created and locked, and a test file is written to it,
//! before anything is computed, so that two runs never share it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use vlm_board::HELD_OUT_FILE;
use vlm_data::is_disk_failure;

use crate::TrainError;
use crate::checkpoint;
use crate::config::Stage;
use crate::dir_lock::{DirLock, unwritable};
use crate::profile;

/// Names of files that show that a folder already holds a run.
const TRACES: [&str; 3] = ["metrics.jsonl", "summary.json", "checkpoints"];

/// Names of the files that every run writes, except weights.
const RECORDS: [&str; 13] = [
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "rejected.jsonl",
    "samples.jsonl",
    "samples",
    "checkpoints",
    "report.html",
    "heldout.png",
    HELD_OUT_FILE,
    "loss_spikes.jsonl",
    profile::TRACE_FILE,
    profile::TABLE_FILE,
];
/// Names of the files that a run with a trained vision encoder writes to the folder `vision`.
const ENCODER_FILES: [&str; 3] = ["model.safetensors", "config.json", "preprocessor_config.json"];
/// Start of the name of the test file; a process id follows.
const PROBE: &str = ".writable-";
/// Start of the names of TensorBoard's event files.
const EVENTS: &str = "events.out.tfevents.";

/// The folder that a run writes to.
#[derive(Debug, Clone)]
pub struct OutDir {
    path: PathBuf,
    stage: Stage,
    /// Whether the folder may hold a run, which is then continued.
    continues: bool,
    /// Stage of a finished run of the previous stage whose records are still in the folder.
    earlier: Option<Stage>,
    /// The lock; only in the process that writes.
    lock: Option<Arc<DirLock>>,
    /// Device and inode of the folder, to detect that it was removed or replaced.
    device_and_inode: Option<(u64, u64)>,
}

/// The stage of the run in `path`, if it has finished.
fn finished_stage(path: &Path) -> Option<Stage> {
    let read = |name: &str| -> Option<serde_json::Value> {
        serde_json::from_str(&fs::read_to_string(path.join(name)).ok()?).ok()
    };
    let finished = read("summary.json")?["status"] == "finished";
    let stage = read("config.json")?["run"]["stage"].take();
    // The first versions of this program had one stage and did not record it.
    let stage =
        if stage.is_null() { Some(Stage::Pretrain) } else { serde_json::from_value(stage).ok() };
    stage.filter(|_| finished)
}

fn precedes(earlier: Stage, stage: Stage) -> bool {
    (earlier, stage) == (Stage::Pretrain, Stage::Sft)
}

fn device_and_inode(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Whether `name` is that of a temporary file of a run: `.pretrain_vlm_512.pth.tmp-4711`,
/// `.writable-4711`.
fn is_leftover(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if name.strip_prefix(PROBE).is_some_and(is_number) {
        return true;
    }
    let parts = name.strip_prefix('.').and_then(|name| name.rsplit_once(".tmp-"));
    parts.is_some_and(|(name, process)| {
        let is_ours = RECORDS.contains(&name)
            || ENCODER_FILES.contains(&name)
            || [Stage::Pretrain, Stage::Sft]
                .iter()
                .any(|stage| name.starts_with(&format!("{}_vlm_", stage.name())));
        is_number(process) && is_ours
    })
}

/// Creates a folder in the out-dir, if it does not exist. The out-dir itself is not created: it may
/// have been removed during the run.
pub(crate) fn create_subfolder(path: &Path) -> Result<(), TrainError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        created => created.map_err(|e| TrainError::at(path, e)),
    }
}

impl OutDir {
    /// Checks the folder, and locks it if it exists; writes nothing else. A folder that already
    /// holds a run is accepted in two cases: `continues` is true, or the run is a finished run of
    /// the previous stage, whose records [`Self::move_earlier`] moves.
    ///
    /// # Errors
    /// The folder holds another run; another process writes to it.
    pub fn open(path: &Path, stage: Stage, continues: bool) -> Result<Self, TrainError> {
        if path.exists() && !path.is_dir() {
            return Err(TrainError::Usage(format!(
                "`out_dir` {} is a file; expected a folder, or a path that does not exist yet",
                path.display()
            )));
        }
        let mut out_dir = Self { continues, ..Self::of_other_rank(path, stage) };
        out_dir.check_free()?;
        if path.is_dir() {
            out_dir.lock()?;
        }
        Ok(out_dir)
    }

    /// Creates and locks the folder, writes a test file, and removes temporary files of killed
    /// processes.
    ///
    /// # Errors
    /// The folder cannot be created or written; another process writes to it.
    pub fn create(&mut self) -> Result<(), TrainError> {
        self.lock()?;
        // Another run may have started and ended since the first check.
        self.check_free()?;
        self.check_writable().map_err(|e| self.unwritable(e))?;
        let found = device_and_inode(&self.path).map_err(|e| self.unwritable(e))?;
        self.device_and_inode = Some(found);
        self.remove_leftovers()
    }

    /// Opens and creates the folder.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::create`].
    pub fn prepare(path: &Path, stage: Stage, continues: bool) -> Result<Self, TrainError> {
        let mut out_dir = Self::open(path, stage, continues)?;
        out_dir.create()?;
        Ok(out_dir)
    }

    /// The folder as a rank other than 0 has it, which does not create, lock or write it.
    pub fn of_other_rank(path: &Path, stage: Stage) -> Self {
        Self {
            path: path.to_owned(),
            stage,
            continues: false,
            earlier: None,
            lock: None,
            device_and_inode: None,
        }
    }

    /// Returns an error if the folder holds a run that this run must not overwrite.
    fn check_free(&mut self) -> Result<(), TrainError> {
        let stage = self.stage;
        self.earlier = finished_stage(&self.path).filter(|&earlier| precedes(earlier, stage));
        if !(self.continues || self.earlier.is_some())
            && let Some(trace) = Self::trace_of_a_run(&self.path, stage)
        {
            return Err(TrainError::Usage(format!(
                "`out_dir` {} already holds a run (it contains {trace}), which is not overwritten; \
                 continue it with `resume = auto`, or choose another `out_dir`",
                self.path.display()
            )));
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<(), TrainError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let lock = DirLock::take("out_dir", &self.path, self.continues)?;
        self.lock = Some(Arc::new(lock));
        Ok(())
    }

    fn unwritable(&self, error: std::io::Error) -> TrainError {
        unwritable("out_dir", &self.path, error, self.continues)
    }

    /// Removes temporary files of killed processes. This process holds the lock, so no other
    /// process is writing them.
    fn remove_leftovers(&self) -> Result<(), TrainError> {
        let mut removed = checkpoint::clean_up(&self.join("checkpoints"))?;
        for folder in [self.path.clone(), self.join("vision")] {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if is_leftover(&name) {
                    fs::remove_file(entry.path()).map_err(|e| TrainError::at(&entry.path(), e))?;
                    removed.push(name);
                }
            }
        }
        if !removed.is_empty() {
            tracing::info!("removed temporary files of a killed process: {}", removed.join(", "));
        }
        Ok(())
    }

    /// Checks that the folder is still the one that this run created or opened.
    ///
    /// # Errors
    /// The folder was removed or replaced.
    pub fn check_not_replaced(&self) -> Result<(), TrainError> {
        let Some(expected) = self.device_and_inode else { return Ok(()) };
        match device_and_inode(&self.path) {
            Ok(found) if found == expected => Ok(()),
            Err(error) if is_disk_failure(&error) => Err(TrainError::at(&self.path, error)),
            _ => Err(TrainError::Failed(format!(
                "`out_dir` {} was removed or replaced during the run, so its checkpoints are lost \
                 and the run ends",
                self.path.display()
            ))),
        }
    }

    /// The result of an operation on files of the folder. Its error is that the folder was removed
    /// or replaced, if it was: the operation failed because of that.
    ///
    /// # Errors
    /// That of `result`; the folder was removed or replaced.
    pub fn unless_replaced<T>(&self, result: Result<T, TrainError>) -> Result<T, TrainError> {
        result.map_err(|error| match self.check_not_replaced() {
            Ok(()) => error,
            Err(replaced) => replaced,
        })
    }

    /// Whether the folder holds weights of a run of this stage.
    pub fn holds_weights(&self) -> bool {
        let prefix = format!("{}_vlm_", self.stage.name());
        let names = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|name| name.starts_with(&prefix))
    }

    /// Whether the folder holds a finished run of the stage before `stage`, and no run of `stage`.
    pub fn holds_earlier(path: &Path, stage: Stage) -> bool {
        finished_stage(path).is_some_and(|earlier| precedes(earlier, stage))
    }

    /// Moves the records of a finished run of the previous stage, but not its weights, into a
    /// subfolder with the name of that stage. Does nothing without such a run.
    ///
    /// # Errors
    /// A failure of the file system, with the path; the subfolder already exists.
    pub fn move_earlier(&mut self) -> Result<(), TrainError> {
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
            "moved the records of the finished {} run to {}",
            stage.name(),
            target.display()
        );
        Ok(())
    }

    /// The name of a file that shows that the folder holds a run.
    fn trace_of_a_run(path: &Path, stage: Stage) -> Option<String> {
        let named = TRACES.iter().find(|name| path.join(name).exists()).map(|&n| n.to_owned());
        named.or_else(|| {
            let names = fs::read_dir(path).ok()?.flatten();
            let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.find(|name| {
                // The second stage starts from the weights of the first.
                name.starts_with("sft_vlm_")
                    || (stage == Stage::Pretrain && name.starts_with("pretrain_vlm_"))
            })
        })
    }

    /// Writes and removes a test file.
    fn check_writable(&self) -> std::io::Result<()> {
        let probe = self.path.join(format!("{PROBE}{}", std::process::id()));
        let mut file = fs::File::create(&probe)?;
        let written = file.write_all(b"probe");
        let removed = fs::remove_file(&probe);
        written.and(removed)
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a value as JSON, atomically.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), TrainError> {
        Ok(vlm_infer::write_json(&self.join(name), value)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_holds_a_run_is_refused_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metrics.jsonl"), "kept").unwrap();
        let error = OutDir::prepare(folder.path(), Stage::Pretrain, false).unwrap_err();
        assert!(matches!(&error, TrainError::Usage(m) if m.contains("`resume = auto`")), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap(), "kept");
        assert!(OutDir::prepare(folder.path(), Stage::Pretrain, true).is_ok());
    }

    #[test]
    fn a_second_run_is_refused_while_the_first_one_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let first = OutDir::prepare(&path, Stage::Pretrain, false).unwrap();
        for continues in [false, true] {
            let error = OutDir::open(&path, Stage::Pretrain, continues).unwrap_err();
            let own = format!("process {} on ", std::process::id());
            assert!(matches!(&error, TrainError::Usage(m) if m.contains(&own)), "{error}");
        }
        drop(first);
        OutDir::prepare(&path, Stage::Pretrain, true).unwrap();
    }

    #[test]
    fn only_temporary_files_of_killed_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let kept = ["lm_512.pth", ".notes.tmp-1", ".pretrain_vlm_512.pth.tmp-", "rows.tmp-12"];
        let left = [".pretrain_vlm_512.pth.tmp-12", ".config.json.tmp-3", ".writable-99"];
        for name in kept.iter().chain(&left) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        OutDir::prepare(folder.path(), Stage::Pretrain, false).unwrap();
        assert!(kept.iter().all(|name| folder.path().join(name).exists()));
        assert!(!left.iter().any(|name| folder.path().join(name).exists()));
    }

    #[test]
    fn a_removed_or_replaced_folder_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let out_dir = OutDir::prepare(&path, Stage::Pretrain, false).unwrap();
        out_dir.check_not_replaced().unwrap();
        let full: Result<(), _> = Err(TrainError::Failed("disk full".into()));
        assert_eq!(out_dir.unless_replaced(full).unwrap_err().to_string(), "disk full");
        fs::rename(&path, folder.path().join("moved")).unwrap();
        assert!(out_dir.check_not_replaced().is_err());
        // A write that fails because of that names the cause, and does not create the folder.
        let failed = create_subfolder(&out_dir.join("checkpoints"));
        let error = out_dir.unless_replaced(failed).unwrap_err().to_string();
        assert!(error.contains("removed or replaced"), "{error}");
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        let error = out_dir.check_not_replaced().unwrap_err().to_string();
        assert!(error.contains("removed or replaced"), "{error}");
    }

    #[test]
    fn a_folder_with_only_starting_weights_holds_no_run() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lm_512.pth"), "weights").unwrap();
        assert!(OutDir::prepare(folder.path(), Stage::Pretrain, false).is_ok());
    }

    #[test]
    fn an_out_dir_that_is_a_file_is_refused() {
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
    fn the_second_stage_moves_the_records_of_a_finished_first_stage() {
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
        out_dir.move_earlier().unwrap();
        assert_eq!(fs::read_to_string(out_dir.join("pretrain/metrics.jsonl")).unwrap(), "kept");
        assert!(!out_dir.join("metrics.jsonl").exists());
        assert!(out_dir.join("pretrain_vlm_512.pth").exists());
    }
}
