//! The lock of a folder, so that one process at a time writes to it. The system releases it when its
//! owner ends, however it ends.
//!
//! Network file systems differ: NFS passes `flock` on to its server since Linux 2.6.12, and the lock of
//! a machine that lost its power lasts until the server notices; some others have no locks.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::Path;

use rustix::io::Errno;

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
pub(crate) enum LockError {
    /// Another process holds the lock: its host and process id, as far as they are known.
    Held(String),
    /// The lock file could not be created.
    Io(io::Error),
}

impl DirLock {
    /// Takes the lock, or returns who holds it. On a file system without locks it logs a warning and
    /// continues.
    pub(crate) fn take(folder: &Path) -> Result<Self, LockError> {
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
        let first = DirLock::take(folder.path()).unwrap();
        let Err(LockError::Held(owner)) = DirLock::take(folder.path()) else { panic!("two locks") };
        assert!(owner.starts_with(&format!("process {} on ", std::process::id())), "{owner}");
        drop(first);
        DirLock::take(folder.path()).unwrap();
    }
}
