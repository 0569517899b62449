//! The cache folder, which all checkouts of this user share, and its lock.
//!
//! An entry is built under a temporary name and then renamed, so that it is either complete or
//! absent. Every process that changes the cache holds the lock. The holder may therefore remove
//! temporary folders: the processes that made them have ended.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::libtorch::{Flavour, VERSION};
use crate::sys;

const PARTIAL: &str = ".partial";

/// The cache folder, locked until this is dropped.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    lock: File,
}

/// The cache folder: `$XDG_CACHE_HOME/vlm`, else `~/.cache/vlm`.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is an absolute path.
pub fn cache_dir() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".cache")));
    let base = base.context(
        "neither XDG_CACHE_HOME nor HOME is an absolute path; set one of them: libtorch is stored \
         there",
    )?;
    Ok(base.join("vlm"))
}

/// The folder for the libtorch that pip downloads.
pub fn libtorch_entry(flavour: Flavour) -> Result<PathBuf> {
    Ok(cache_dir()?.join(format!("libtorch-{VERSION}-{}", flavour.name())))
}

impl Cache {
    /// Locks the cache, after waiting for other set-ups, and removes the partial entries of
    /// interrupted ones.
    pub fn lock() -> Result<Self> {
        let dir = cache_dir()?;
        fs::create_dir_all(&dir)
            .with_context(|| format!("making the cache folder {}", dir.display()))?;
        let path = dir.join("setup.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let locking = || format!("locking {}", path.display());
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("setup: waiting for another set-up to finish");
                file.lock().with_context(locking)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(locking),
        }
        let cache = Self { dir, lock: file };
        cache.clear_partial_entries()?;
        Ok(cache)
    }

    /// The lock as the (empty) standard input of a program that writes into the cache. The cache
    /// then stays locked until that program ends, even if this process is killed first.
    pub fn lock_for_child(&self) -> Result<Stdio> {
        Ok(Stdio::from(self.lock.try_clone().context("sharing the cache's lock")?))
    }

    fn clear_partial_entries(&self) -> Result<()> {
        let reading = || format!("reading {}", self.dir.display());
        for entry in fs::read_dir(&self.dir).with_context(reading)? {
            let path = entry.with_context(reading)?.path();
            if path.extension().is_some_and(|extension| extension == &PARTIAL[1..]) {
                eprintln!("setup: removing {}, left by an interrupted set-up", path.display());
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Calls `fill` to build the entry in a temporary folder, which then replaces the folder
    /// `entry`.
    ///
    /// # Errors
    /// The error of `fill` or of the file system; an earlier entry is then unchanged.
    pub fn put(&self, entry: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let partial = with_suffix(entry, PARTIAL);
        let replaced = with_suffix(entry, &format!(".replaced{PARTIAL}"));
        fs::create_dir_all(&partial).with_context(|| format!("making {}", partial.display()))?;
        if let Err(error) = fill(&partial) {
            // The error of `fill` is the one to report; the next set-up removes what is left.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        if entry.exists() {
            rename(entry, &replaced)?;
        }
        rename(&partial, entry)?;
        if replaced.exists() { remove(&replaced) } else { Ok(()) }
    }

    /// Checks that the disk of the cache has `needed` free bytes.
    ///
    /// # Errors
    /// Too little free space; the message gives both sizes.
    pub fn require_free_bytes(&self, needed: u64) -> Result<()> {
        let free = sys::free_bytes(&self.dir)
            .with_context(|| format!("asking for the free space of {}", self.dir.display()))?;
        if free < needed {
            bail!(
                "{} has {} free, expected {} for the installation: free some space, or point \
                 XDG_CACHE_HOME at a larger disk",
                self.dir.display(),
                gigabytes(free),
                gigabytes(needed)
            );
        }
        Ok(())
    }
}

/// Total size of the files under `path` in bytes, without following links.
pub fn size_of_tree(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return fs::symlink_metadata(path).map_or(0, |meta| meta.len());
    };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => size_of_tree(&entry.path()),
            _ => entry.metadata().map_or(0, |meta| meta.len()),
        })
        .sum()
}

/// A size in gigabytes, as `1.2 GB`.
pub fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_in(dir: &Path) -> Cache {
        Cache { dir: dir.to_path_buf(), lock: File::create(dir.join("setup.lock")).unwrap() }
    }

    #[test]
    fn failed_entry_leaves_only_the_old_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path());
        let entry = folder.path().join("libtorch-2.11.0-cpu");
        cache.put(&entry, |dir| Ok(fs::write(dir.join("old"), "")?)).unwrap();

        let failed = cache.put(&entry, |dir| {
            fs::write(dir.join("new"), "")?;
            bail!("the network failed")
        });
        assert!(failed.is_err());
        assert!(entry.join("old").exists() && !entry.join("new").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the entry and the lock");
    }

    #[test]
    fn partial_entries_are_removed_and_complete_ones_kept() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("libtorch-2.11.0-cpu");
        let partial = folder.path().join("libtorch-2.11.0-cuda.partial");
        fs::create_dir_all(whole.join("torch")).unwrap();
        fs::create_dir_all(partial.join("torch")).unwrap();
        cache_in(folder.path()).clear_partial_entries().unwrap();
        assert!(whole.exists() && !partial.exists());
    }
}
