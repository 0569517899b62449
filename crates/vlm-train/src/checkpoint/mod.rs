//! Checkpoints: the folders `checkpoints/step-00000100/`.
//!
//! A checkpoint is written under a temporary name, flushed to the disk and then renamed, so that a
//! folder with the name of a checkpoint is always complete. It holds a [`StateDict`], the identity
//! of the run, and a checksum of each file.

mod folder;
mod state_file;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;
use vlm_data::is_disk_failure;
use vlm_model::weights::{self, Format};
use vlm_torch::Heartbeat;

pub use self::folder::{clean_up, newest, rename_later, traces};
use self::folder::{put_in_place, remove_if_exists, remove_oldest, sync, temporary_name};
use crate::TrainError;
use crate::state_dict::StateDict;
use crate::train_state::TrainState;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// The contents of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    /// Version of the checkpoint format.
    version: u32,
    /// Version of the program that wrote the checkpoint.
    program: String,
    #[serde(rename = "position")]
    train_state: TrainState,
    identity: serde_json::Value,
    /// BLAKE3 of each file, in hexadecimal.
    checksums: BTreeMap<String, String>,
}

/// A checkpoint that was read from its folder.
#[derive(Debug)]
pub struct Checkpoint {
    /// Path of the folder.
    pub path: PathBuf,
    /// Weights, optimizer state and progress of the training.
    pub state_dict: StateDict,
    /// Settings and hashes of files that must be the same in a run that continues from the
    /// checkpoint.
    pub identity: serde_json::Value,
}

/// The reason why a checkpoint cannot be loaded. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder does not exist.
    #[error("{0}; expected a checkpoint folder")]
    Missing(String),
    /// A file is missing, was changed or is damaged.
    #[error("{0}")]
    Damaged(String),
    /// The checkpoint has a format that this version of the program does not read.
    #[error("{0}")]
    OtherVersion(String),
    /// The disk, or the connection to it, failed.
    #[error("{0}")]
    Disk(String),
}

impl LoadError {
    fn from_io(path: &Path, error: io::Error) -> Self {
        let text = format!("{}: {error}", path.display());
        if is_disk_failure(&error) { Self::Disk(text) } else { Self::Damaged(text) }
    }
}

impl From<LoadError> for TrainError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Missing(_) | LoadError::OtherVersion(_) => Self::Usage(error.to_string()),
            LoadError::Damaged(_) | LoadError::Disk(_) => Self::Failed(error.to_string()),
        }
    }
}

/// Writes the checkpoint `folder/step-…`, then removes the oldest checkpoints until `keep` are
/// left; with `None` it removes none. Returns the path of the checkpoint. A checkpoint of the same
/// step is replaced, or left unchanged if its contents are the same. `heartbeat` is called
/// regularly during the write, even on a slow disk.
///
/// # Errors
/// A failure of the file system, with the path. No incomplete folder is left under the name of the
/// checkpoint.
pub fn save(
    folder: &Path,
    state_dict: &StateDict,
    identity: &serde_json::Value,
    keep: Option<usize>,
    heartbeat: Heartbeat,
) -> Result<PathBuf, TrainError> {
    let step = state_dict.train_state.counters.step;
    let target = folder.join(format!("step-{step:08}"));
    let temporary = temporary_name(&target);
    let written = fs::create_dir_all(folder)
        .map_err(|e| TrainError::at(folder, e))
        .and_then(|()| remove_if_exists(&temporary))
        .and_then(|()| fs::create_dir(&temporary).map_err(|e| TrainError::at(&temporary, e)))
        .and_then(|()| fill(&temporary, state_dict, identity, heartbeat))
        .and_then(|state| {
            if is_same(&target, &state) {
                return remove_if_exists(&temporary);
            }
            put_in_place(&temporary, &target)?;
            sync(folder)
        });
    if let Err(error) = written {
        // Only the first error is reported. If this fails, the leftover has a temporary name.
        let _ = fs::remove_dir_all(&temporary);
        return Err(TrainError::Failed(format!(
            "the checkpoint of step {step} was not written ({error}). Earlier checkpoints are \
             unaffected"
        )));
    }
    if let Some(keep) = keep {
        remove_oldest(folder, keep, &target)?;
    }
    Ok(target)
}

/// Writes the files of a checkpoint to `folder`, and returns the contents of its `state.json`.
fn fill(
    folder: &Path,
    state_dict: &StateDict,
    identity: &serde_json::Value,
    heartbeat: Heartbeat,
) -> Result<StateFile, TrainError> {
    let mut checksums = BTreeMap::new();
    for (name, tensors) in [(MODEL, &state_dict.model), (OPTIMIZER, &state_dict.optimizer)] {
        let path = folder.join(name);
        weights::save_with(&path, tensors, Format::Safetensors, Some(heartbeat))
            .map_err(|e| TrainError::at(&path, e))?;
        let checksum = checksum(&path, heartbeat).map_err(|e| TrainError::at(&path, e))?;
        checksums.insert(name.to_owned(), checksum);
    }
    let state = StateFile {
        version: state_file::FORMAT_VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        train_state: state_dict.train_state,
        identity: identity.clone(),
        checksums,
    };
    state_file::write(&folder.join(STATE), &state)?;
    sync(folder)?;
    Ok(state)
}

/// Whether `path` is an undamaged checkpoint with the same contents.
fn is_same(path: &Path, state: &StateFile) -> bool {
    read_state(path).is_ok_and(|there| {
        there.version == state.version
            && there.train_state == state.train_state
            && there.identity == state.identity
            && there.checksums == state.checksums
    })
}

/// Reads the checkpoint at `path` and verifies the checksums of its files.
///
/// # Errors
/// A missing file, an unknown format version, a wrong checksum; the message names the file.
pub fn load(path: &Path) -> Result<Checkpoint, LoadError> {
    let state = read_state(path)?;
    let read = |name: &str| {
        let file = path.join(name);
        Tensor::read_safetensors(&file)
            .map_err(|e| LoadError::Damaged(format!("{}: {e}", file.display())))
    };
    let (model, optimizer) = (read(MODEL)?, read(OPTIMIZER)?);
    let StateFile { train_state, identity, .. } = state;
    let state_dict = StateDict { model, optimizer, train_state };
    Ok(Checkpoint { path: path.to_owned(), state_dict, identity })
}

/// Reads `state.json` of the checkpoint at `path`, and verifies the checksums of all files.
fn read_state(path: &Path) -> Result<StateFile, LoadError> {
    if !path.is_dir() {
        return Err(LoadError::Missing(format!("{} does not exist", path.display())));
    }
    let state = state_file::read(&path.join(STATE))?;
    for (name, expected) in &state.checksums {
        let file = path.join(name);
        let found = checksum(&file, Heartbeat(&|| ())).map_err(|e| LoadError::from_io(&file, e))?;
        if found != *expected {
            return Err(LoadError::Damaged(format!(
                "{}: the checksum differs from the one in state.json: the file was changed or is \
                 damaged; continue from another checkpoint",
                file.display()
            )));
        }
    }
    Ok(state)
}

/// BLAKE3 of a file's bytes, in hexadecimal.
fn checksum(path: &Path, Heartbeat(beat): Heartbeat) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.write_all(&buffer[..read])?;
        beat();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn tensors(value: f64) -> Vec<(String, Tensor)> {
        vec![("a".into(), Tensor::full([3], value, (Kind::Float, Device::Cpu)))]
    }

    fn save_value(folder: &Path, step: u64, value: f64, keep: usize) -> PathBuf {
        let identity = serde_json::json!({"seed": 1337});
        save(folder, &state_dict(step, value), &identity, Some(keep), Heartbeat(&|| ())).unwrap()
    }

    fn state_dict(step: u64, value: f64) -> StateDict {
        let mut train_state = TrainState::default();
        train_state.counters.step = step;
        StateDict { model: tensors(value), optimizer: tensors(0.5), train_state }
    }

    fn save_step(folder: &Path, step: u64, keep: usize) -> PathBuf {
        save_value(folder, step, step as f64, keep)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn newest_step(folder: &Path) -> u64 {
        newest(folder).unwrap().unwrap().state_dict.train_state.counters.step
    }

    #[test]
    fn a_loaded_checkpoint_equals_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 7, 2);
        let back = newest(folder.path()).unwrap().unwrap();
        assert_eq!(back.state_dict.train_state.counters.step, 7);
        assert_eq!(back.state_dict.model[0].1, tensors(7.0)[0].1);
        assert_eq!(back.state_dict.optimizer[0].1, tensors(0.5)[0].1);
    }

    #[test]
    fn only_the_newest_checkpoints_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 10] {
            save_step(folder.path(), step, 2);
        }
        assert_eq!(names(folder.path()), ["step-00000002", "step-00000010"]);
    }

    #[test]
    fn a_damaged_checkpoint_is_skipped_in_favour_of_the_previous_one() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 1, 2);
        let newest_path = save_step(folder.path(), 2, 2);
        let file = newest_path.join(MODEL);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        assert!(load(&newest_path).unwrap_err().to_string().contains(MODEL));
        assert_eq!(newest_step(folder.path()), 1);
    }

    #[test]
    fn the_checkpoint_just_written_is_kept_and_damaged_ones_of_later_steps_are_renamed() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 4, 3);
        for step in [8, 12] {
            fs::write(save_step(folder.path(), step, 3).join(STATE), "{").unwrap();
        }
        assert_eq!(newest_step(folder.path()), 4);
        rename_later(folder.path(), 4).unwrap();
        for step in [5, 6] {
            save_step(folder.path(), step, 2);
        }
        assert_eq!(
            names(folder.path()),
            ["step-00000005", "step-00000006", "step-00000008.damaged", "step-00000012.damaged"]
        );
    }

    #[test]
    fn valid_checkpoints_of_later_steps_are_renamed_and_not_continued_from() {
        let folder = tempfile::tempdir().unwrap();
        for step in [4, 8] {
            save_step(folder.path(), step, 2);
        }
        rename_later(folder.path(), 4).unwrap();
        save_step(folder.path(), 6, 1);
        assert_eq!(names(folder.path()), ["step-00000006", "step-00000008.superseded"]);
        assert_eq!(newest_step(folder.path()), 6);
    }

    #[test]
    fn saving_a_step_again_replaces_its_checkpoint_only_if_the_contents_differ() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_value(folder.path(), 3, 1.0, 1);
        let modified = || fs::metadata(path.join(MODEL)).unwrap().modified().unwrap();
        let before = modified();
        save_value(folder.path(), 3, 1.0, 1);
        assert_eq!(modified(), before, "an equal checkpoint is not written again");
        save_value(folder.path(), 3, 2.0, 1);
        assert_eq!(load(&path).unwrap().state_dict.model[0].1, tensors(2.0)[0].1);
        assert_eq!(names(folder.path()), ["step-00000003"]);
    }

    #[test]
    fn any_changed_byte_of_the_state_file_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_step(folder.path(), 3, 1);
        let file = path.join(STATE);
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&file, &bytes).unwrap();
            assert!(load(&path).is_err(), "byte {at} of {}", String::from_utf8_lossy(&whole));
        }
        // A number that was edited by hand is detected, too.
        let edited = String::from_utf8(whole).unwrap().replace("\"step\": 3", "\"step\": 9");
        fs::write(&file, edited).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn a_state_file_of_version_1_which_has_no_checksum_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_step(folder.path(), 3, 1);
        let file = path.join(STATE);
        let mut state: serde_json::Value =
            serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let fields = state.as_object_mut().unwrap();
        fields.remove("checksum");
        fs::write(&file, serde_json::to_string_pretty(&fields).unwrap()).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("no checksum"));
        state["version"] = 1.into();
        fs::write(&file, serde_json::to_string_pretty(&state).unwrap()).unwrap();
        assert_eq!(load(&path).unwrap().state_dict.train_state.counters.step, 3);
    }

    #[test]
    fn a_checkpoint_saved_while_updates_were_skipped_is_used_only_without_a_healthy_one() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 1, 9);
        let mut unhealthy = state_dict(2, 2.0);
        unhealthy.train_state.skipped_in_a_row = 4;
        let identity = serde_json::Value::Null;
        save(folder.path(), &unhealthy, &identity, None, Heartbeat(&|| ())).unwrap();
        assert_eq!(newest_step(folder.path()), 1);
        fs::remove_dir_all(folder.path().join("step-00000001")).unwrap();
        assert_eq!(newest_step(folder.path()), 2);
    }

    #[test]
    fn leftovers_of_a_killed_save_are_removed_and_a_renamed_checkpoint_gets_its_name_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_step(folder.path(), 3, 9);
        fs::rename(&path, folder.path().join(".step-00000003.old")).unwrap();
        save_step(folder.path(), 4, 9);
        for name in [".step-00000004.old", ".step-00000005.tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut removed = clean_up(folder.path()).unwrap();
        removed.sort();
        assert_eq!(removed, [".step-00000004.old", ".step-00000005.tmp"]);
        assert_eq!(names(folder.path()), ["step-00000003", "step-00000004"]);
    }
}
