//! Disks that are full or cannot be written to: a small file system in memory where this user may
//! mount one, else a limit on the size of files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::program::output_of;

/// A small file system, or an ordinary folder if none can be mounted.
pub struct Disk {
    folder: PathBuf,
    is_mounted: bool,
}

impl Disk {
    /// A file system of `bytes` in a new folder `folder`.
    pub fn create(folder: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        let is_mounted = mount(folder, &format!("size={bytes}"));
        Ok(Self { folder: folder.to_owned(), is_mounted })
    }

    /// Whether it is a file system of its own.
    pub fn is_mounted(&self) -> bool {
        self.is_mounted
    }

    /// Changes the size or the mode of the file system, such as `size=1000000` or `ro`.
    pub fn remount(&self, option: &str) -> Result<()> {
        if self.is_mounted {
            let mut command = Command::new("mount");
            command.args(["-o", &format!("remount,{option}")]).arg(&self.folder);
            output_of(&mut command, "changing a file system")?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily, so that a process that hangs cannot keep it.
            let mut command = Command::new("umount");
            let _ = command.arg("-l").arg(&self.folder).stderr(Stdio::null()).status();
        }
    }
}

/// Folders in which nothing can be created, renamed or removed until this is dropped.
pub struct Frozen {
    folders: Vec<PathBuf>,
    is_attribute: bool,
}

impl Frozen {
    /// Makes the folders read-only: with the immutable attribute, which also holds for root, or
    /// without write permission. `None` if neither binds this user. (A file system with files that
    /// are open for writing cannot be mounted read-only.)
    pub fn new(folders: &[&Path]) -> Option<Self> {
        let folders: Vec<PathBuf> = folders.iter().map(|&folder| folder.to_owned()).collect();
        for is_attribute in [true, false] {
            let frozen = Self { folders: folders.clone(), is_attribute };
            if frozen.folders.iter().all(|folder| frozen.set(folder, true) && is_refused(folder)) {
                return Some(frozen);
            }
        }
        None
    }

    /// Makes a folder read-only, or writable. Returns whether the system did it.
    fn set(&self, folder: &Path, is_frozen: bool) -> bool {
        let (program, flag) = match (self.is_attribute, is_frozen) {
            (true, true) => ("chattr", "+i"),
            (true, false) => ("chattr", "-i"),
            (false, true) => ("chmod", "a-w"),
            (false, false) => ("chmod", "u+w"),
        };
        let mut command = Command::new(program);
        command.arg(flag).arg(folder).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for folder in &self.folders {
            self.set(folder, false);
        }
    }
}

/// Whether no file can be created in the folder.
fn is_refused(folder: &Path) -> bool {
    let probe = folder.join(".probe");
    let is_created = std::fs::write(&probe, []).is_ok();
    // It exists only if the folder is writable.
    let _ = std::fs::remove_file(probe);
    !is_created
}

fn mount(folder: &Path, options: &str) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "none"]).arg(folder);
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The command with limits of the shell, such as `ulimit -f 16` (blocks of 512 bytes).
pub fn limited(command: &Command, limits: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("trap '' XFSZ; {limits}; exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null());
    shell
}
