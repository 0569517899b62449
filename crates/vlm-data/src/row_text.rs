//! Reads the text of one row from a file of many rows.

use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::plain_file::PlainFile;
use crate::reject::Reject;
use crate::row_error::RowError;
use crate::row_options::RowOptions;

/// The byte order mark of UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// `bytes` without a byte order mark at their start.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// Skips a byte order mark, and returns its length, or 0 if there is none.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn skip_mark(reader: &mut impl BufRead) -> std::io::Result<u64> {
    let length =
        if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    reader.consume(length);
    Ok(length as u64)
}

/// Position of a row or an image in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteRange {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A file from which rows are read as text.
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

    /// The text at `range`.
    ///
    /// # Errors
    /// `InvalidRow`: the text is longer than the options allow, beyond the end of
    /// the file, or not UTF-8. A disk that fails.
    pub(crate) fn read(&self, range: ByteRange) -> Result<String, RowError> {
        let (bytes, max_bytes) = (range.bytes, self.max_bytes);
        if bytes > max_bytes {
            let problem = format!("the row has {bytes} bytes; the limit is {max_bytes}");
            return Err(Reject::invalid_row(problem).into());
        }
        let mut text = vec![0; bytes as usize];
        let changed =
            |e: String| Reject::invalid_row(format!("cannot be read (did the file change?): {e}"));
        self.file
            .read_exact_at(&mut text, range.offset)
            .map_err(|e| RowError::from_io(&self.path, "read the row", e, changed))?;
        Ok(String::from_utf8(text).map_err(|e| Reject::invalid_row(format!("not UTF-8: {e}")))?)
    }
}

/// The last part of a path, for a message.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).display().to_string()
}

/// The folder of the file at `path`, which image names are relative to if no images folder is
/// given.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
