//! The lock of a folder, so that one process at a time writes to it. The system releases it when its
//! owner ends, however it ends.
//!
//! Network file systems differ: NFS passes `flock` on to its server since Linux 2.6.12, and the lock of
//! a machine that lost its power lasts until the server notices; some others have no locks.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::Path;

use rustix::io::Errno;
use vlm_data::is_disk_failure;

use crate::TrainError;
use crate::machine::host_name;

/// The file that is locked. It stays when the lock is released: removing it would let two processes
/// lock two different files of this name.
const FILE_NAME: &str = ".lock";

/// An exclusive lock on a folder, for as long as this lives.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

/// Why a folder could not be locked.
#[derive(Debug)]
enum LockError {
    /// Another process holds the lock: its host and process id, as far as they are known.
    Held(String),
    /// The lock file could not be created.
    Io(io::Error),
}

impl DirLock {
    /// Creates `folder`, the value of `setting`, and takes its lock. On a file system without locks
    /// it logs a warning and continues. `continues` is as for [`unwritable`].
    ///
    /// # Errors
    /// Another process holds the lock; a folder that cannot be written.
    pub(crate) fn take(setting: &str, folder: &Path, continues: bool) -> Result<Self, TrainError> {
        let unwritable = |error| unwritable(setting, folder, error, continues);
        fs::create_dir_all(folder).map_err(unwritable)?;
        Self::try_take(folder).map_err(|error| match error {
            LockError::Held(owner) => TrainError::Usage(format!(
                "`{setting}` {}: another run is writing to it ({owner}); wait until it has ended, \
                 or choose another `{setting}`",
                folder.display()
            )),
            LockError::Io(error) => unwritable(error),
        })
    }

    fn try_take(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(FILE_NAME);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(LockError::Io)?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let mut owner = String::new();
                    // The owner is for the message only.
                    let _ = file.read_to_string(&mut owner);
                    let owner = owner.trim();
                    return Err(LockError::Held(match owner {
                        "" => "another process".to_owned(),
                        owner => owner.to_owned(),
                    }));
                }
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                    tracing::warn!(
                        "{}: this file system has no locks ({error}); make sure that no second run \
                         writes to this folder",
                        folder.display()
                    );
                    break;
                }
                Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
            }
        }
        let owner = format!("process {} on {}\n", std::process::id(), host_name());
        // The lock holds without the name of its owner; a full disk is noticed elsewhere.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(owner.as_bytes()));
        Ok(Self { _file: file })
    }
}

/// The error for a folder that cannot be written, the value of `setting`: a failure if the disk is
/// full or fails, otherwise a usage error. A file system that is read-only is a failure if the
/// program `continues` what it wrote there before.
pub(crate) fn unwritable(
    setting: &str,
    folder: &Path,
    error: io::Error,
    continues: bool,
) -> TrainError {
    let problem = format!("`{setting}` {} cannot be written: {error}", folder.display());
    let is_read_only = error.kind() == ErrorKind::ReadOnlyFilesystem;
    if is_disk_failure(&error) && (continues || !is_read_only) {
        return TrainError::Failed(problem);
    }
    TrainError::Usage(format!("{problem}; choose a folder that you may write to"))
}

/// Whether the file system, or its server, has no locks.
fn has_no_locks(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOLCK.raw_os_error())
        || matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_owner_of_the_first_and_succeeds_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let take = || DirLock::take("out_dir", folder.path(), false);
        let first = take().unwrap();
        let message = take().unwrap_err().to_string();
        let owner = format!("(process {} on ", std::process::id());
        assert!(message.starts_with("`out_dir`") && message.contains(&owner), "{message}");
        drop(first);
        take().unwrap();
    }
}
