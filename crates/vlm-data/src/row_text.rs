//! Reads the text of one row out of a file of many.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::plain_file::PlainFile;
use crate::reject::{Reject, RejectReason};
use crate::row_error::RowError;
use crate::row_options::RowOptions;

/// Where a row or an image lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteRange {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A file that rows are read from as text.
#[derive(Debug)]
pub(crate) struct RowTexts {
    path: PathBuf,
    pub(crate) file: File,
    max_bytes: u64,
}

impl RowTexts {
    pub(crate) fn new(plain: PlainFile, options: &RowOptions) -> Self {
        Self { path: plain.path, file: plain.file, max_bytes: options.max_row_bytes }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The text in `range`.
    ///
    /// # Errors
    /// [`RejectReason::InvalidRow`]: it is longer than the options allow, beyond the end of the file,
    /// or not UTF-8. A disk that fails.
    pub(crate) fn read(&self, range: ByteRange) -> Result<String, RowError> {
        let invalid = |detail: String| Reject::new(RejectReason::InvalidRow, detail);
        let (bytes, max_bytes) = (range.bytes, self.max_bytes);
        if bytes > max_bytes {
            let problem = format!("the row has {bytes} bytes; at most {max_bytes} are read");
            return Err(invalid(problem).into());
        }
        let mut text = vec![0; bytes as usize];
        let changed = |e: String| invalid(format!("cannot be read (did the file change?): {e}"));
        self.file
            .read_exact_at(&mut text, range.offset)
            .map_err(|e| RowError::of_system(&self.path, "read the row", e, changed))?;
        Ok(String::from_utf8(text).map_err(|e| invalid(format!("not UTF-8: {e}")))?)
    }
}

/// The last part of a path, for a message.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).display().to_string()
}

/// The folder that image names are relative to when no images folder is given: that of the rows.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
