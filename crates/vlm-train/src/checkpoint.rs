//! Checkpoints: `checkpoints/step-00000100/`, each whole or not there at all.
//!
//! A checkpoint is written under a temporary name, flushed to the disk and then renamed. It holds
//! the weights but the vision encoder's, the optimizer's state, and where the run stood, with a
//! checksum of each file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;
use vlm_model::weights::{self, Format};
use vlm_torch::GoesOn;

use crate::TrainError;
use crate::out_dir::write_json;
use crate::trainer::Position;

const FORMAT_VERSION: u32 = 1;
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// Version of this format.
    pub version: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Where the run stood.
    pub position: Position,
    /// What must be the same for the continued run to be the run it would have been.
    pub identity: serde_json::Value,
    /// BLAKE3 of each file, in hexadecimal.
    pub checksums: std::collections::BTreeMap<String, String>,
}

/// A checkpoint read back.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where it lies.
    pub path: PathBuf,
    /// Weights but the vision encoder's.
    pub model: Vec<(String, Tensor)>,
    /// The optimizer's state.
    pub optimizer: Vec<(String, Tensor)>,
    /// Position and identity.
    pub state: State,
}

/// Writes `folder/step-…`, then removes the oldest beyond `keep`; the new one's path. `goes_on` is
/// called again and again, however slow the disk is.
///
/// # Errors
/// The system's, with the path; nothing half-written stays under the checkpoint's name.
pub fn save(
    folder: &Path,
    model: &[(String, Tensor)],
    optimizer: &[(String, Tensor)],
    position: Position,
    identity: serde_json::Value,
    keep: usize,
    goes_on: GoesOn,
) -> Result<PathBuf, TrainError> {
    let name = format!("step-{:08}", position.counters.step);
    let (target, temporary) = (folder.join(&name), folder.join(format!(".{name}.tmp")));
    fs::create_dir_all(folder).map_err(|e| TrainError::at(folder, e))?;
    remove_if_there(&temporary)?;
    fs::create_dir(&temporary).map_err(|e| TrainError::at(&temporary, e))?;
    let written = fill(&temporary, model, optimizer, position, identity, goes_on).and_then(|()| {
        remove_if_there(&target)?;
        fs::rename(&temporary, &target).map_err(|e| TrainError::at(&target, e))?;
        sync(folder)
    });
    if let Err(error) = written {
        // The first error is the one to tell; what is left is a temporary name.
        let _ = fs::remove_dir_all(&temporary);
        return Err(TrainError::Failed(format!(
            "the checkpoint of step {} was not written ({error}); those before it are as they were",
            position.counters.step
        )));
    }
    remove_oldest(folder, keep)?;
    Ok(target)
}

fn fill(
    folder: &Path,
    model: &[(String, Tensor)],
    optimizer: &[(String, Tensor)],
    position: Position,
    identity: serde_json::Value,
    goes_on: GoesOn,
) -> Result<(), TrainError> {
    let mut checksums = std::collections::BTreeMap::new();
    for (name, tensors) in [(MODEL, model), (OPTIMIZER, optimizer)] {
        let path = folder.join(name);
        weights::save_with(&path, tensors, Format::Safetensors, Some(goes_on))
            .map_err(|e| TrainError::at(&path, e))?;
        checksums.insert(name.to_owned(), checksum(&path, goes_on)?);
    }
    let program = env!("CARGO_PKG_VERSION").to_owned();
    let state = State { version: FORMAT_VERSION, program, position, identity, checksums };
    write_json(&folder.join(STATE), &state)?;
    sync(folder)
}

/// The checkpoint at `path`, proven whole.
///
/// # Errors
/// A missing file, another format version, a checksum that does not fit; each names the file.
pub fn load(path: &Path) -> Result<Checkpoint, TrainError> {
    let state_path = path.join(STATE);
    let text = fs::read_to_string(&state_path).map_err(|e| {
        TrainError::Usage(format!("{}: {e}; expected a checkpoint folder", state_path.display()))
    })?;
    let state: State = serde_json::from_str(&text).map_err(|e| TrainError::at(&state_path, e))?;
    if state.version != FORMAT_VERSION {
        return Err(TrainError::Usage(format!(
            "{}: checkpoint format {}; this program reads {FORMAT_VERSION}",
            state_path.display(),
            state.version
        )));
    }
    for (name, expected) in &state.checksums {
        let file = path.join(name);
        if checksum(&file, GoesOn(&|| ()))? != *expected {
            return Err(TrainError::at(
                &file,
                "its checksum is not the one in state.json: the file was changed or is damaged; \
                 continue from another checkpoint",
            ));
        }
    }
    let read = |name: &str| {
        let file = path.join(name);
        Tensor::read_safetensors(&file).map_err(|e| TrainError::at(&file, e))
    };
    let (model, optimizer) = (read(MODEL)?, read(OPTIMIZER)?);
    Ok(Checkpoint { path: path.to_owned(), model, optimizer, state })
}

/// The newest good checkpoint in `folder`, if there is any; damaged ones are passed over with a
/// warning.
///
/// # Errors
/// A folder that cannot be read.
pub fn newest(folder: &Path) -> Result<Option<Checkpoint>, TrainError> {
    for path in list(folder)?.into_iter().rev() {
        match load(&path) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) => tracing::warn!("passed over: {error}"),
        }
    }
    Ok(None)
}

/// Checkpoint folders, oldest first.
fn list(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).map_err(|e| TrainError::at(folder, e))?;
    let is_checkpoint = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"))
    };
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_checkpoint).collect();
    paths.sort();
    Ok(paths)
}

fn remove_oldest(folder: &Path, keep: usize) -> Result<(), TrainError> {
    let paths = list(folder)?;
    for path in &paths[..paths.len().saturating_sub(keep)] {
        fs::remove_dir_all(path).map_err(|e| TrainError::at(path, e))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), TrainError> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(|e| TrainError::at(path, e))
    } else {
        Ok(())
    }
}

/// Flushes a folder's entries to the disk.
fn sync(folder: &Path) -> Result<(), TrainError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| TrainError::at(folder, e))
}

/// BLAKE3 of a file's bytes, in hexadecimal.
fn checksum(path: &Path, GoesOn(goes_on): GoesOn) -> Result<String, TrainError> {
    let mut file = File::open(path).map_err(|e| TrainError::at(path, e))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(|e| TrainError::at(path, e))?;
        if read == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.write_all(&buffer[..read]).map_err(|e| TrainError::at(path, e))?;
        goes_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn tensors(value: f64) -> Vec<(String, Tensor)> {
        vec![("a".into(), Tensor::full([3], value, (Kind::Float, Device::Cpu)))]
    }

    fn save_step(folder: &Path, step: u64, keep: usize) -> PathBuf {
        let mut position = Position::default();
        position.counters.step = step;
        let (model, optimizer) = (tensors(step as f64), tensors(0.5));
        let identity = serde_json::Value::Null;
        save(folder, &model, &optimizer, position, identity, keep, GoesOn(&|| ())).unwrap()
    }

    #[test]
    fn what_was_saved_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 7, 2);
        let back = newest(folder.path()).unwrap().unwrap();
        assert_eq!(back.state.position.counters.step, 7);
        assert_eq!(back.model[0].1, tensors(7.0)[0].1);
        assert_eq!(back.optimizer[0].1, tensors(0.5)[0].1);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 10] {
            save_step(folder.path(), step, 2);
        }
        let names: Vec<_> = list(folder.path()).unwrap();
        assert_eq!(names.len(), 2);
        assert!(names[1].ends_with("step-00000010"));
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 1, 2);
        let newest_path = save_step(folder.path(), 2, 2);
        let file = newest_path.join(MODEL);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        assert!(load(&newest_path).unwrap_err().to_string().contains(MODEL));
        assert_eq!(newest(folder.path()).unwrap().unwrap().state.position.counters.step, 1);
    }
}
