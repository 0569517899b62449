//! A folder for the files of the inputs: readers take paths.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{cell::RefCell, fs};

use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a temporary folder");
    /// Folders whose other files are written.
    static READY: RefCell<HashSet<&'static str>> = RefCell::default();
}

/// Writes the input as the file `name` of the scratch folder `folder`, and returns the folder.
/// `others` writes the files beside it, once.
pub(crate) fn folder_with(
    folder: &'static str,
    name: &str,
    data: &[u8],
    others: impl FnOnce(&Path),
) -> PathBuf {
    let path = FOLDER.with(|root| root.path().join(folder));
    if READY.with(|ready| ready.borrow_mut().insert(folder)) {
        fs::create_dir_all(&path).expect("a scratch folder");
        others(&path);
    }
    fs::write(path.join(name), data).expect("the scratch folder can be written");
    path
}

/// Writes the input as a file of its own, and returns its path.
pub(crate) fn file(folder: &'static str, name: &str, data: &[u8]) -> PathBuf {
    folder_with(folder, name, data, |_| ()).join(name)
}

/// Files of the tests in `tests/golden` of at most `max_bytes` bytes whose names end in one of
/// `endings`.
pub(crate) fn golden(folder: &str, endings: &[&str], max_bytes: u64) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(folder);
    let (mut found, mut folders) = (Vec::new(), vec![root]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let is_wanted = endings.iter().any(|end| name.to_string_lossy().ends_with(end));
            if path.is_dir() {
                folders.push(path);
            } else if is_wanted && entry.metadata().is_ok_and(|file| file.len() <= max_bytes) {
                found.push(path);
            }
        }
    }
    // The order of a folder's entries differs between machines.
    found.sort();
    found.iter().filter_map(|path| fs::read(path).ok()).collect()
}
