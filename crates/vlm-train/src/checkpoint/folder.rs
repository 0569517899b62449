//! The folder with the checkpoints of a run: lists them, finds the one to continue from, and
//! removes old ones.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::load::{Checkpoint, STATE, load};
use super::load_error::LoadError;
use super::state_file;
use crate::TrainError;
use crate::config::Resume;

/// Start of the names of checkpoints.
const PREFIX: &str = "step-";
/// End of the name of a checkpoint that cannot be loaded.
const DAMAGED: &str = ".damaged";
/// End of the name of a checkpoint whose run was continued from an earlier step.
const SUPERSEDED: &str = ".superseded";

/// The newest checkpoint in `folder` that can be loaded, if there is any. Damaged checkpoints are
/// skipped with a warning. One that was written while updates were being skipped is used only if
/// there is no other.
///
/// # Errors
/// A folder that cannot be read.
pub fn newest(folder: &Path) -> Result<Option<Checkpoint>, TrainError> {
    let mut unhealthy = None;
    for path in list(folder)?.into_iter().rev() {
        match load(&path) {
            Ok(checkpoint) if checkpoint.state_dict.train_state.skipped_in_a_row == 0 => {
                if unhealthy.is_some() {
                    tracing::warn!(
                        "checkpoints of later steps than {} are not used, because they were \
                         written while updates were being skipped",
                        path.display()
                    );
                }
                return Ok(Some(checkpoint));
            }
            Ok(checkpoint) => unhealthy = unhealthy.or(Some(checkpoint)),
            Err(error) => tracing::warn!("skipped a checkpoint that cannot be loaded: {error}"),
        }
    }
    Ok(unhealthy)
}

/// The identity of the run that `resume` names, from its newest checkpoint whose `state.json` can be
/// read; `None` if there is none. The other files are not looked at.
pub fn identity_to_resume(resume: &Resume, folder: &Path) -> Option<serde_json::Value> {
    let paths = match resume {
        Resume::Path(path) => vec![path.clone()],
        Resume::Auto => list(folder).ok()?,
    };
    let read = |path: PathBuf| state_file::read(&path.join(STATE)).ok();
    paths.into_iter().rev().find_map(read).map(|state| state.identity)
}

/// The names of all checkpoints in `folder`, renamed ones included.
pub fn traces(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(PREFIX)).collect();
    names.sort();
    names
}

/// Renames the checkpoints of later steps than `step`, the step that a run continues from. They are
/// superseded or damaged, so they must not be used as the newest checkpoint, and they do not count
/// among the checkpoints that are kept.
///
/// # Errors
/// A failure of the file system, with the path.
pub fn rename_later(folder: &Path, step: u64) -> Result<(), TrainError> {
    for path in list(folder)? {
        if step_of(&path).is_some_and(|later| later > step) {
            let (suffix, why) = match load(&path) {
                Ok(_) => (SUPERSEDED, "this run continues from an earlier step".to_owned()),
                Err(LoadError::Damaged(why)) => (DAMAGED, why),
                Err(other) => (SUPERSEDED, other.to_string()),
            };
            rename_with_suffix(&path, suffix, &why)?;
        }
    }
    Ok(())
}

/// Renames the complete folder `temporary` to `target`, and removes the folder that had this name.
/// Where the file system can exchange two names, `target` exists at every moment.
pub(super) fn put_in_place(temporary: &Path, target: &Path) -> Result<(), TrainError> {
    let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| TrainError::at(to, e));
    if !target.exists() {
        return rename(temporary, target);
    }
    match renameat_with(CWD, temporary, CWD, target, RenameFlags::EXCHANGE) {
        // The replaced folder now has the temporary name.
        Ok(()) => remove_if_exists(temporary),
        Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
            let old = old_name(target);
            remove_if_exists(&old)?;
            rename(target, &old)?;
            rename(temporary, target)?;
            remove_if_exists(&old)
        }
        Err(error) => Err(TrainError::at(target, std::io::Error::from(error))),
    }
}

/// The name of a checkpoint that is being written or removed: `.step-00000100.tmp`.
pub(super) fn temporary_name(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    target.with_file_name(format!(".{name}.tmp"))
}

/// The temporary name of a checkpoint that is being replaced, on a file system that cannot exchange
/// two names: `.step-00000100.old`.
fn old_name(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    target.with_file_name(format!(".{name}.old"))
}

/// Removes the unfinished folders of a process that was killed while it saved, and gives a
/// checkpoint its name back if the process was killed between two renames. Returns the names of the
/// removed folders. Only the process that holds the lock of the out-dir may call it.
///
/// # Errors
/// A failure of the file system, with the path.
pub fn clean_up(folder: &Path) -> Result<Vec<String>, TrainError> {
    let mut removed = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(removed) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(inner) = name.strip_prefix('.').filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        if let Some(target) = inner.strip_suffix(".old").map(|name| folder.join(name))
            && !target.exists()
        {
            fs::rename(&path, &target).map_err(|e| TrainError::at(&target, e))?;
        } else if inner.ends_with(".old") || inner.ends_with(".tmp") {
            remove_if_exists(&path)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Removes the oldest checkpoints until `keep` are left, but never `written`. Damaged checkpoints
/// are renamed and not counted.
pub(super) fn remove_oldest(folder: &Path, keep: usize, written: &Path) -> Result<(), TrainError> {
    let mut others = Vec::new();
    for path in list(folder)?.into_iter().filter(|path| path != written) {
        match state_file::read(&path.join(STATE)) {
            Err(LoadError::Damaged(why)) => rename_with_suffix(&path, DAMAGED, &why)?,
            _ => others.push(path),
        }
    }
    let num_old = others.len().saturating_sub(keep.saturating_sub(1));
    for path in &others[..num_old] {
        // If the process is killed now, the rest must not look like a damaged checkpoint.
        let temporary = temporary_name(path);
        remove_if_exists(&temporary)?;
        fs::rename(path, &temporary).map_err(|e| TrainError::at(path, e))?;
        remove_if_exists(&temporary)?;
    }
    Ok(())
}

fn rename_with_suffix(path: &Path, suffix: &str, why: &str) -> Result<(), TrainError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut target = path.with_file_name(format!("{name}{suffix}"));
    let mut number = 1;
    while target.exists() {
        number += 1;
        target = path.with_file_name(format!("{name}{suffix}-{number}"));
    }
    fs::rename(path, &target).map_err(|e| TrainError::at(path, e))?;
    tracing::warn!("renamed {name} to {}: {why}", target.display());
    Ok(())
}

/// The paths of the checkpoints in `folder`, sorted by step.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).map_err(|e| TrainError::at(folder, e))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<(u64, PathBuf)> =
        paths.filter_map(|path| Some((step_of(&path)?, path))).collect();
    paths.sort();
    Ok(paths.into_iter().map(|(_, path)| path).collect())
}

/// The step in a checkpoint's name: `step-00000100` → 100.
fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// Removes a folder with its contents, if it exists.
pub(super) fn remove_if_exists(path: &Path) -> Result<(), TrainError> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(|e| TrainError::at(path, e))
    } else {
        Ok(())
    }
}

/// Flushes the entries of a folder to the disk.
pub(super) fn sync(folder: &Path) -> Result<(), TrainError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| TrainError::at(folder, e))
}
