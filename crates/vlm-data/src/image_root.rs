//! The folder that image names in rows are relative to, and may not leave.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use crate::error::DataError;
use crate::obstacle::Obstacle;
use crate::reject::{Reject, RejectReason};

/// An encoded picture larger than this, in bytes, is not read at all.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;

/// A folder of images. Names come from data that nobody has looked through, so a name that leads
/// out of the folder, by itself or through a symbolic link, is refused.
#[derive(Debug, Clone)]
pub struct ImageRoot {
    path: PathBuf,
}

impl ImageRoot {
    /// # Errors
    /// A folder that is not there.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let canonical =
            path.canonicalize().map_err(DataError::io(path, "find the folder of the images"))?;
        if !canonical.is_dir() {
            return Err(DataError::content(
                path,
                "expected the folder of the images, found a file",
            ));
        }
        Ok(Self { path: canonical })
    }

    /// Reads the file called `name` under the folder.
    ///
    /// # Errors
    /// A name that leads outside, a missing file, or one that cannot be read; a disk that fails.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Obstacle> {
        let path = self.resolve(name)?;
        let unreadable = |problem: String| unreadable(name, problem);
        let failed = |e| Obstacle::of_system(&path, "read the image", e, unreadable);
        // Looked at before it is opened: opening a named pipe would wait for ever.
        let metadata = path.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(unreadable("not a regular file".into()).into());
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(Obstacle::Row(Reject::new(
                RejectReason::ImageTooLarge,
                format!("{name:?}: {} bytes; at most {MAX_FILE_BYTES} are read", metadata.len()),
            )));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        File::open(&path)
            .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes))
            .map_err(failed)?;
        Ok(bytes)
    }

    fn resolve(&self, name: &str) -> Result<PathBuf, Obstacle> {
        let outside = |problem: &str| {
            Reject::new(
                RejectReason::ImageOutsideRoot,
                format!("{name:?} {problem}; names must stay within the images folder"),
            )
        };
        let relative = Path::new(name);
        for component in relative.components() {
            match component {
                Component::Normal(_) | Component::CurDir => {}
                Component::ParentDir => return Err(outside("has a \"..\"").into()),
                Component::RootDir | Component::Prefix(_) => {
                    return Err(outside("is an absolute path").into());
                }
            }
        }
        let joined = self.path.join(relative);
        let path = joined.canonicalize().map_err(|e| match e.kind() {
            ErrorKind::NotFound => Obstacle::Row(Reject::new(
                RejectReason::MissingImage,
                format!("no file {name:?} in the images folder"),
            )),
            _ => Obstacle::of_system(&joined, "find the image", e, |e| unreadable(name, e)),
        })?;
        if !path.starts_with(&self.path) {
            return Err(outside("leads elsewhere through a symbolic link").into());
        }
        Ok(path)
    }
}

fn unreadable(name: &str, problem: String) -> Reject {
    Reject::new(RejectReason::UnreadableImage, format!("{name:?}: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root_path = folder.path().join("images");
        std::fs::create_dir_all(root_path.join("sub")).unwrap();
        std::fs::write(folder.path().join("secret"), b"s").unwrap();
        std::fs::write(root_path.join("sub/a.jpg"), b"a").unwrap();
        let root = ImageRoot::open(&root_path).unwrap();
        assert_eq!(root.read("./sub/a.jpg").unwrap(), b"a");
        let reason = |name: &str| root.read(name).unwrap_err().reject().unwrap().reason;
        assert_eq!(reason("../secret"), RejectReason::ImageOutsideRoot);
        assert_eq!(reason("sub/../../secret"), RejectReason::ImageOutsideRoot);
        assert_eq!(reason("/etc/passwd"), RejectReason::ImageOutsideRoot);
        assert_eq!(reason("none.jpg"), RejectReason::MissingImage);
        assert_eq!(reason("a\0b"), RejectReason::UnreadableImage);
        assert_eq!(reason("sub"), RejectReason::UnreadableImage);
        #[cfg(unix)]
        {
            let secret = folder.path().join("secret");
            std::os::unix::fs::symlink(secret, root_path.join("link.jpg")).unwrap();
            assert_eq!(reason("link.jpg"), RejectReason::ImageOutsideRoot);
        }
        assert!(ImageRoot::open(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_file_that_the_system_fails_to_read_is_no_fault_of_its_row() {
        let root = ImageRoot::open(Path::new("/proc/self")).unwrap();
        let Err(Obstacle::Run(error)) = root.read("mem") else { panic!("expected a failure") };
        let told = error.to_string();
        assert!(told.contains("/mem: cannot read the image: "), "{told}");
    }
}
