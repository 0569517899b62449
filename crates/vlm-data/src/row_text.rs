//! Reads one row's text out of a file of many.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::reject::{Reject, RejectReason};
use crate::row_error::RowError;

/// The `bytes` bytes at `offset` of the file at `path`.
///
/// # Errors
/// [`RejectReason::InvalidRow`]: more than `max_bytes`, not there, not UTF-8. A disk that fails.
pub(crate) fn read_row_text(
    file: &File,
    path: &Path,
    offset: u64,
    bytes: u64,
    max_bytes: u64,
) -> Result<String, RowError> {
    let invalid = |detail: String| Reject::new(RejectReason::InvalidRow, detail);
    if bytes > max_bytes {
        let problem = format!("the row has {bytes} bytes; at most {max_bytes} are read");
        return Err(invalid(problem).into());
    }
    let mut text = vec![0; bytes as usize];
    let changed = |e: String| invalid(format!("cannot be read (did the file change?): {e}"));
    file.read_exact_at(&mut text, offset)
        .map_err(|e| RowError::of_system(path, "read the row", e, changed))?;
    Ok(String::from_utf8(text).map_err(|e| invalid(format!("not UTF-8: {e}")))?)
}

/// The last part of a path, for a person.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).display().to_string()
}

/// The folder that image names are relative to when none is given: that of the rows.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
