//! Writes files and folders atomically.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// With a heartbeat, the file is flushed after this number of bytes, because there is no heartbeat
/// during a flush.
const FLUSHED_BYTES: usize = 4 << 20;

/// A file that is being written, flushed regularly if there is a heartbeat.
#[derive(Debug)]
pub struct Flushing<'a> {
    file: File,
    unflushed: usize,
    heartbeat: Option<Heartbeat<'a>>,
}

/// A function that is called repeatedly while an operation makes progress.
#[derive(Clone, Copy)]
pub struct Heartbeat<'a>(pub &'a dyn Fn());

impl std::fmt::Debug for Heartbeat<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Heartbeat")
    }
}

impl Write for Flushing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(&bytes[..bytes.len().min(FLUSHED_BYTES)])?;
        if let Some(Heartbeat(beat)) = self.heartbeat {
            self.unflushed += written;
            if self.unflushed >= FLUSHED_BYTES {
                self.file.sync_data()?;
                self.unflushed = 0;
            }
            beat();
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file atomically: `fill` writes a temporary file beside `path`, which is flushed to the
/// disk and renamed to `path`. If this fails, the temporary file is removed, and an earlier file at
/// `path` is unchanged.
///
/// # Errors
/// A file operation fails, or `fill` returns an error.
pub fn write_atomically<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<Flushing>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    write_atomically_with(path, None, fill)
}

/// As [`write_atomically`]. `heartbeat` is called each time a few megabytes have been written to
/// the disk.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_atomically_with<E: From<Error>>(
    path: &Path,
    heartbeat: Option<Heartbeat>,
    fill: impl FnOnce(&mut BufWriter<Flushing>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let temporary = temporary_name(path)?;
    let written = write_and_sync(&temporary, heartbeat, fill)
        .and_then(|()| {
            let renamed = fs::rename(&temporary, path);
            renamed.map_err(|e| Error::io("rename to", path, removed_meanwhile(e)).into())
        })
        .and_then(|()| sync_folder(path).map_err(E::from));
    if written.is_err() {
        // The first error is reported; the file may not exist.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Writes a folder: `fill` writes into a temporary folder beside `path`, which is then renamed to
/// `path`. An earlier folder at `path` is replaced, with all its content, when the new one is
/// complete. If this fails, the temporary folder is removed.
///
/// # Errors
/// A file operation fails, or `fill` returns an error.
pub fn write_folder_atomically<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let temporary = temporary_name(path)?;
    let written = fs::create_dir(&temporary)
        .map_err(|e| Error::io("create", &temporary, e).into())
        .and_then(|()| fill(&temporary))
        .and_then(|()| put_in_place(&temporary, path).map_err(E::from));
    if written.is_err() {
        // The first error is reported; the folder may not exist.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

/// Explains an error of a rename whose source this process has just written.
fn removed_meanwhile(error: std::io::Error) -> std::io::Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    let message = "the file or its folder was removed by another process while it was written";
    std::io::Error::new(ErrorKind::NotFound, message)
}

fn put_in_place(temporary: &Path, path: &Path) -> Result<()> {
    sync_folder(&temporary.join("."))?;
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).map_err(|e| Error::io("rename to", to, removed_meanwhile(e)))
    };
    if path.exists() {
        let replaced = temporary_name(temporary)?;
        rename(path, &replaced)?;
        rename(temporary, path)?;
        fs::remove_dir_all(&replaced).map_err(|e| Error::io("remove", &replaced, e))?;
    } else {
        rename(temporary, path)?;
    }
    sync_folder(path)
}

fn write_and_sync<E: From<Error>>(
    path: &Path,
    heartbeat: Option<Heartbeat>,
    fill: impl FnOnce(&mut BufWriter<Flushing>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let file = File::create(path).map_err(|e| Error::io("create", path, e))?;
    let flushing = Flushing { file, unflushed: 0, heartbeat };
    let mut writer = BufWriter::with_capacity(1 << 20, flushing);
    fill(&mut writer)?;
    writer.flush().map_err(|e| Error::io("write", path, e))?;
    writer.get_ref().file.sync_all().map_err(|e| Error::io("flush to disk", path, e))?;
    Ok(())
}

/// A temporary name in the same folder, because a rename works only within one file system.
fn temporary_name(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::argument(
            "write a file",
            format!("{} is not a file name", path.display()),
        ));
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".tmp-{}", std::process::id()));
    Ok(path.with_file_name(temporary))
}

/// Flushes the folder of `path` to the disk, without which a rename may be lost in a power failure.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::io("flush the folder", folder, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_removed_during_the_write_is_named_as_the_reason() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out");
        fs::create_dir(&folder).unwrap();
        let path = folder.join("weights");
        let written: Result<()> = write_atomically(&path, |_| {
            fs::remove_dir_all(&folder).unwrap();
            Ok(())
        });
        let error = written.unwrap_err().to_string();
        assert!(error.contains("removed by another process"), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}
