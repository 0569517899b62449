//! Reads checkpoints.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tch::Tensor;
use vlm_torch::Heartbeat;

use super::load_error::LoadError;
use super::state_file::{self, StateFile};
use crate::state_dict::StateDict;

pub(super) const MODEL: &str = "model.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "state.json";

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

/// Reads the checkpoint at `path` and verifies the checksums of its files.
///
/// # Errors
/// A missing file, an unknown format version, a wrong checksum; the message names the file.
pub fn load(path: &Path) -> Result<Checkpoint, LoadError> {
    let state = read_state(path, Heartbeat(&|| ()))?;
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

/// Reads `state.json` of the checkpoint at `path`, and verifies the checksums of all files. Calls
/// `heartbeat` regularly.
pub(super) fn read_state(path: &Path, heartbeat: Heartbeat) -> Result<StateFile, LoadError> {
    if !path.is_dir() {
        return Err(LoadError::Missing(format!("{} does not exist", path.display())));
    }
    let state = state_file::read(&path.join(STATE))?;
    for (name, expected) in &state.checksums {
        let file = path.join(name);
        let found = checksum(&file, heartbeat).map_err(|e| LoadError::from_io(&file, e))?;
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
pub(super) fn checksum(path: &Path, Heartbeat(beat): Heartbeat) -> io::Result<String> {
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
