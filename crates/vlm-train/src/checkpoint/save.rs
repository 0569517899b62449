//! Writes checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use vlm_model::weights::{self, Format};
use vlm_torch::Heartbeat;

use super::folder::{list, put_in_place, remove_if_exists, remove_oldest, sync, temporary_name};
use super::load::{MODEL, OPTIMIZER, STATE, checksum, read_state};
use super::state_file::{self, StateFile};
use crate::TrainError;
use crate::out_dir::create_subfolder;
use crate::state_dict::StateDict;

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
    let written = create_subfolder(folder)
        .and_then(|()| remove_if_exists(&temporary))
        .and_then(|()| fs::create_dir(&temporary).map_err(|e| TrainError::at(&temporary, e)))
        .and_then(|()| fill(&temporary, state_dict, identity, heartbeat))
        .and_then(|state| {
            if is_same(&target, &state, heartbeat) {
                return remove_if_exists(&temporary);
            }
            put_in_place(&temporary, &target)?;
            sync(folder)
        });
    if let Err(error) = written {
        // Only the first error is reported. If this fails, the leftover has a temporary name.
        let _ = fs::remove_dir_all(&temporary);
        let others = list(folder).unwrap_or_default();
        let newest = match others.iter().rfind(|path| path.join(STATE).exists()) {
            Some(path) => format!("The newest checkpoint is {}", path.display()),
            None => "There is no other checkpoint".to_owned(),
        };
        return Err(TrainError::Failed(format!(
            "the checkpoint of step {step} was not written ({error}). {newest}"
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
fn is_same(path: &Path, state: &StateFile, heartbeat: Heartbeat) -> bool {
    read_state(path, heartbeat).is_ok_and(|there| {
        there.version == state.version
            && there.train_state == state.train_state
            && there.identity == state.identity
            && there.checksums == state.checksums
    })
}
