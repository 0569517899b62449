//! The folder that image names in rows are relative to. Names may not lead out of it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use tokenizers::NormalizedString;

use crate::error::DataError;
use crate::folder::images_within;
use crate::record::shown;
use crate::reject::{Reject, RejectReason};
use crate::row_error::RowError;
use crate::row_options::RowOptions;

/// A folder of images. The names come from data that may be hostile, so a name that leads out of
/// the folder is refused. Links in the folder were made by its owner and are followed, unless that
/// is turned off.
#[derive(Debug, Clone)]
pub struct ImageRoot {
    path: PathBuf,
    /// The folder as the user named it, made absolute: rows may name it in this form too.
    named: PathBuf,
    /// Folders that are searched if the first one has no such file.
    others: Vec<PathBuf>,
    follow_links: bool,
    max_bytes: u64,
}

impl ImageRoot {
    /// The folder at `path`.
    ///
    /// # Errors
    /// A folder that does not exist.
    pub fn with_options(path: &Path, options: &RowOptions) -> Result<Self, DataError> {
        let failed = DataError::io(path, "find the folder of the images");
        let canonical = path.canonicalize().map_err(failed)?;
        if !canonical.is_dir() {
            return Err(DataError::content(path, "expected a folder of images, found a file"));
        }
        let named = std::path::absolute(path).unwrap_or_else(|_| canonical.clone());
        let RowOptions { follow_links, max_image_bytes, .. } = *options;
        Ok(Self {
            path: canonical,
            named,
            others: Vec::new(),
            follow_links,
            max_bytes: max_image_bytes,
        })
    }

    /// The folder of the rows, which is used if the user names none; also the folder `images` in
    /// it, and the same for [`RowOptions::images_beside`].
    ///
    /// # Errors
    /// A folder that does not exist.
    pub(crate) fn beside_rows(folder: &Path, options: &RowOptions) -> Result<Self, DataError> {
        let mut this = Self::with_options(folder, options)?;
        let folders = [Some(this.path.clone()), options.images_beside.clone()];
        for folder in folders.into_iter().flatten() {
            this.others.extend(images_within(&folder));
            this.others.push(folder);
        }
        Ok(this)
    }

    /// Reads the file called `name` in the folder.
    ///
    /// # Errors
    /// A name that leads out of the folder, a missing file, or one that cannot be read; a disk that
    /// fails.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, RowError> {
        let path = self.resolve(name)?;
        let unreadable = |problem: String| unreadable(name, problem);
        let failed = |e| RowError::from_io(&path, "read the image", e, unreadable);
        // The file is checked before it is opened, because opening a named pipe would wait for
        // ever.
        let metadata = path.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(unreadable("not a regular file".into()).into());
        }
        if metadata.len() > self.max_bytes {
            let (size, limit) = (metadata.len(), self.max_bytes);
            let name = format!("{:?}", shown(name));
            return Err(Reject::image_too_large(&name, size, limit).into());
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        File::open(&path)
            .and_then(|file| file.take(self.max_bytes).read_to_end(&mut bytes))
            .map_err(failed)?;
        Ok(bytes)
    }

    /// Whether the folder has a file called `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.within(name).is_ok_and(|path| self.find(&path).is_some_and(|path| path.is_file()))
    }

    fn resolve(&self, name: &str) -> Result<PathBuf, RowError> {
        if let Some((scheme, _)) = name.split_once("://")
            && scheme != "file"
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(RowError::Reject(Reject::missing_image(format!(
                "{:?} is an address, and images are not downloaded: download them, and use the \
                     names of the files",
                shown(name)
            ))));
        }
        let relative = self.within(name)?;
        let joined = self.path.join(&relative);
        let found = match joined.symlink_metadata() {
            Ok(_) => joined,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                self.find(&relative).ok_or_else(|| self.missing(name, &relative))?
            }
            Err(e) => {
                return Err(RowError::from_io(&joined, "find the image", e, |e| {
                    unreadable(name, e)
                }));
            }
        };
        if !self.follow_links {
            let canonical = found.canonicalize();
            let is_within = |canonical: PathBuf| {
                std::iter::once(&self.path)
                    .chain(&self.others)
                    .any(|root| canonical.starts_with(root))
            };
            if !canonical.is_ok_and(is_within) {
                return Err(outside(name, "is a symbolic link that leads elsewhere").into());
            }
        }
        Ok(found)
    }

    /// The path of `name` relative to the folder, without `..`.
    fn within(&self, name: &str) -> Result<PathBuf, Reject> {
        let plain = name.strip_prefix("file://").unwrap_or(name);
        let path = Path::new(plain);
        let mut roots = [&self.named, &self.path].into_iter().chain(&self.others);
        let path = match roots.find_map(|root| path.strip_prefix(root).ok()) {
            Some(relative) => relative,
            None if path.is_absolute() => {
                let root = self.named.display();
                return Err(outside(name, &format!("is not within the images folder {root}")));
            }
            None => path,
        };
        let mut relative = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(part) => relative.push(part),
                Component::CurDir => {}
                // This removes a part of the name itself, so no link can lead elsewhere by it.
                Component::ParentDir if relative.pop() => {}
                Component::ParentDir => return Err(outside(name, "has a \"..\"")),
                Component::RootDir | Component::Prefix(_) => {
                    return Err(outside(name, "is an absolute path"));
                }
            }
        }
        Ok(relative)
    }

    /// The file under another spelling of its name: with `/` for `\\`, with accents as one
    /// character or as two.
    fn find(&self, relative: &Path) -> Option<PathBuf> {
        let roots = || std::iter::once(&self.path).chain(&self.others);
        if let Some(plain) = roots().map(|root| root.join(relative)).find(|path| path.exists()) {
            return Some(plain);
        }
        let name = relative.to_str()?;
        let mut spellings = Vec::new();
        if name.contains('\\') {
            let slashed = name.replace('\\', "/");
            // A drive letter or `..` does not name a file within the folder.
            let is_within = Path::new(&slashed)
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if is_within && !slashed.contains(':') {
                spellings.push(slashed);
            }
        }
        for name in spellings.clone().iter().map(String::as_str).chain([name]) {
            if !name.is_ascii() {
                let mut composed = NormalizedString::from(name);
                spellings.push(composed.nfc().get().to_owned());
                let mut decomposed = NormalizedString::from(name);
                spellings.push(decomposed.nfd().get().to_owned());
            }
        }
        let paths = spellings.iter().flat_map(|name| roots().map(move |root| root.join(name)));
        paths.into_iter().find(|path| path.exists())
    }

    fn missing(&self, name: &str, relative: &Path) -> Reject {
        let near = self.near(relative).map(|near| format!("; did you mean {near:?}?"));
        let near = near.or_else(|| {
            let mut above = relative.ancestors().skip(1);
            let file = above.find(|above| self.path.join(above).is_file())?;
            Some(format!(
                "; {file:?} in it is a file, not a folder (a link that was copied as text?)"
            ))
        });
        Reject::missing_image(format!(
            "no file {:?} in the images folder{}",
            shown(name),
            near.unwrap_or_default()
        ))
    }

    /// A file in the same folder whose name differs only in case or extension.
    fn near(&self, relative: &Path) -> Option<String> {
        const OTHERS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "JPG", "JPEG"];
        let path = self.path.join(relative);
        let (stem, extension) = (path.file_stem()?, path.extension());
        let others = OTHERS.iter().filter(|other| extension.is_none_or(|own| own != **other));
        let mut candidates = others.map(|other| path.with_file_name(stem).with_extension(other));
        let found = candidates.find(|candidate| candidate.is_file())?;
        Some(found.strip_prefix(&self.path).ok()?.display().to_string())
    }
}

fn outside(name: &str, problem: &str) -> Reject {
    Reject::new(
        RejectReason::ImageOutsideRoot,
        format!("{:?} {problem}; names must stay within the images folder", shown(name)),
    )
}

fn unreadable(name: &str, problem: String) -> Reject {
    Reject::unreadable_image(format!("{:?}: {problem}", shown(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<ImageRoot, DataError> {
        ImageRoot::with_options(path, &RowOptions::default())
    }

    #[test]
    fn names_stay_within_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root_path = folder.path().join("images");
        std::fs::create_dir_all(root_path.join("sub")).unwrap();
        std::fs::write(folder.path().join("secret"), b"s").unwrap();
        std::fs::write(root_path.join("sub/a.jpg"), b"a").unwrap();
        let root = open(&root_path).unwrap();
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
            assert_eq!(
                root.read("link.jpg").unwrap(),
                b"s",
                "the owner of the folder made the link"
            );
            let options = RowOptions { follow_links: false, ..RowOptions::default() };
            let strict = ImageRoot::with_options(&root_path, &options).unwrap();
            let reject = strict.read("link.jpg").unwrap_err().reject().unwrap();
            assert_eq!(reject.reason, RejectReason::ImageOutsideRoot);
            assert_eq!(strict.read("sub/a.jpg").unwrap(), b"a");
        }
        assert!(open(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn names_are_found_as_other_systems_spell_them() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        std::fs::create_dir_all(images.join("sub")).unwrap();
        std::fs::write(images.join("sub/a.jpg"), b"a").unwrap();
        // "é" as two characters, as macOS writes names, and as one.
        std::fs::write(images.join("caf\u{65}\u{301}.jpg"), b"d").unwrap();
        std::fs::write(images.join("na\u{ef}ve.jpg"), b"c").unwrap();
        std::fs::write(images.join("b.JPG"), b"b").unwrap();
        let root = open(&images).unwrap();
        let absolute = images.join("sub/a.jpg").display().to_string();
        for name in ["sub\\a.jpg", ".\\sub\\a.jpg", "sub/../sub/a.jpg", &absolute] {
            assert_eq!(root.read(name).unwrap(), b"a", "{name}");
        }
        assert_eq!(root.read(&format!("file://{absolute}")).unwrap(), b"a");
        assert_eq!(root.read("caf\u{e9}.jpg").unwrap(), b"d");
        assert_eq!(root.read("na\u{69}\u{308}ve.jpg").unwrap(), b"c");
        let reject = |name: &str| root.read(name).unwrap_err().reject().unwrap();
        assert_eq!(reject("..\\sub\\a.jpg").reason, RejectReason::MissingImage);
        assert_eq!(reject("C:\\a.jpg").reason, RejectReason::MissingImage);
        assert!(reject("b.jpg").detail.contains("did you mean \"b.JPG\"?"));
        assert!(reject("b.JPG/a.jpg").detail.contains("\"b.JPG\" in it is a file"));
        assert!(reject("https://example.org/a.jpg").detail.contains("not downloaded"));
        assert!(root.has("sub/a.jpg") && !root.has("sub") && !root.has("../images/sub/a.jpg"));
    }

    #[test]
    fn a_file_that_the_system_fails_to_read_does_not_reject_its_row() {
        let root = open(Path::new("/proc/self")).unwrap();
        let Err(RowError::Fatal(error)) = root.read("mem") else { panic!("expected a failure") };
        let message = error.to_string();
        assert!(message.contains("/mem: cannot read the image: "), "{message}");
    }
}
