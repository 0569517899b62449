//! Rows from a file of JSON lines. Only where each line lies is kept in memory: twenty bytes a row.

use std::fs::File;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::DataError;
use crate::plain_file::PlainFile;
use crate::record::Field;
use crate::reject::{Reject, RejectReason};
use crate::row_error::RowError;
use crate::row_options::RowOptions;
use crate::row_reader::{self, RowReader};
use crate::row_text::{file_name, read_row_text};
use crate::rows::{Row, RowImage};
use crate::source::RowSource;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The rows of a `.jsonl` file, read as they are asked for.
#[derive(Debug)]
pub struct JsonlSource {
    path: PathBuf,
    file: File,
    lines: Vec<Line>,
    reader: RowReader,
    /// `JSON lines`, with what was around them.
    format: String,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    offset: u64,
    bytes: u64,
    /// From 1, as editors count; blank lines count too.
    number: u32,
}

impl JsonlSource {
    /// Opens `path` and finds its lines; blank ones are no rows. Image names are relative to
    /// `images_root`, without one to the folder of `path`.
    ///
    /// # Errors
    /// A file or folder that cannot be read, or a file without any row.
    pub fn open(path: &Path, images_root: Option<&Path>) -> Result<Self, DataError> {
        let options = Arc::new(RowOptions::default());
        Self::of_plain(PlainFile::open(path, &options)?, images_root, &options)
    }

    /// The lines of a file that is opened already.
    pub(crate) fn of_plain(
        plain: PlainFile,
        images_root: Option<&Path>,
        options: &Arc<RowOptions>,
    ) -> Result<Self, DataError> {
        let path = plain.path.clone();
        let mut reader = plain.reader_from(0)?;
        let lines = index_lines(&mut reader).map_err(DataError::io(&path, "read the rows"))?;
        if lines.is_empty() {
            return Err(DataError::content(
                &path,
                "no rows in this file; expected one JSON object a line: {\"conversations\": \
                 [{\"role\": \"user\", \"content\": \"<image>\\n…\"}, {\"role\": \"assistant\", \
                 \"content\": \"…\"}], \"image\": \"a.jpg\"}",
            ));
        }
        let reader = RowReader::new(&path, images_root, options)?;
        let format = plain.format("JSON lines");
        Ok(Self { path, file: plain.file, lines, reader, format })
    }

    fn text(&self, index: usize) -> Result<String, RowError> {
        let Some(line) = self.lines.get(index) else {
            return Err(RowError::Reject(Reject::new(
                RejectReason::InvalidRow,
                format!("row {index} of {}", self.lines.len()),
            )));
        };
        let max_bytes = self.reader.options().max_row_bytes;
        read_row_text(&self.file, &self.path, line.offset, line.bytes, max_bytes)
    }
}

impl RowSource for JsonlSource {
    fn len(&self) -> usize {
        self.lines.len()
    }

    fn row(&self, index: usize) -> Result<Row, RowError> {
        Ok(self.reader.row_of_json(&self.text(index)?)?)
    }

    fn image_bytes(&self, _: usize, _: usize, image: &RowImage) -> Result<Bytes, RowError> {
        self.reader.image_bytes(image)
    }

    fn describe(&self) -> Vec<String> {
        let record = |index| match row_reader::json(&self.text(index).ok()?).ok()? {
            Field::Object(record) => Some(record),
            _ => None,
        };
        vec![format!(
            "{}: {}",
            self.path.display(),
            row_reader::describe(self, &self.format, record)
        )]
    }

    fn locate(&self, index: usize) -> String {
        let name = file_name(&self.path);
        match self.lines.get(index) {
            Some(line) => format!("{name}:{}", line.number),
            None => format!("{name}, row {index}"),
        }
    }
}

fn index_lines(reader: &mut impl BufRead) -> std::io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut offset = 0;
    if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
        offset = BYTE_ORDER_MARK.len() as u64;
    }
    let mut line = Line { offset, bytes: 0, number: 1 };
    let mut is_blank = true;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        let newline = memchr::memchr(b'\n', buffer);
        let part = &buffer[..newline.unwrap_or(buffer.len())];
        is_blank &= part.iter().all(u8::is_ascii_whitespace);
        line.bytes += part.len() as u64;
        let consumed = part.len() + usize::from(newline.is_some());
        reader.consume(consumed);
        if newline.is_some() {
            if !is_blank {
                lines.push(line);
            }
            let offset = line.offset + line.bytes + 1;
            line = Line { offset, bytes: 0, number: line.number.saturating_add(1) };
            is_blank = true;
        }
    }
    if !is_blank {
        lines.push(line);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row_error::failing_file;

    const ROW: &str = r#"{"conversations":[{"content":"好"}],"image":"a.jpg"}"#;

    #[test]
    fn rows_are_found_by_line_and_blank_lines_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, format!("\u{feff}{ROW}\r\n\n  \n{{broken\n{ROW}")).unwrap();
        std::fs::write(folder.path().join("a.jpg"), b"picture").unwrap();
        let source = JsonlSource::open(&path, None).unwrap();
        assert_eq!(source.len(), 3);
        let row = source.row(0).unwrap();
        assert_eq!(row.turns[0].content, "<image>\n好");
        assert_eq!(source.image_bytes(0, 0, &row.images[0]).unwrap(), &b"picture"[..]);
        let reason = |error: RowError| error.reject().unwrap().reason;
        let missing = source.image_bytes(0, 1, &RowImage::named("b.jpg")).unwrap_err();
        assert_eq!(reason(missing), RejectReason::MissingImage);
        assert_eq!(reason(source.row(1).unwrap_err()), RejectReason::InvalidRow);
        assert_eq!(source.row(2).unwrap(), row);
        assert_eq!(reason(source.row(3).unwrap_err()), RejectReason::InvalidRow);
        assert_eq!(source.locate(1), "rows.jsonl:4");
        assert_eq!(source.locate(2), "rows.jsonl:5");
    }

    #[test]
    fn a_row_that_the_system_fails_to_read_ends_the_work_and_is_not_at_fault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, ROW).unwrap();
        let source =
            JsonlSource { file: failing_file(), ..JsonlSource::open(&path, None).unwrap() };
        let Err(RowError::Fatal(error)) = source.row(0) else { panic!("expected a failure") };
        let told = error.to_string();
        assert!(told.contains("rows.jsonl: cannot read the row: "), "{told}");
    }

    #[test]
    fn a_missing_or_empty_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.jsonl");
        let error = JsonlSource::open(&path, None).unwrap_err().to_string();
        assert!(error.contains("none.jsonl"), "{error}");
        std::fs::write(&path, "\n \n").unwrap();
        let error = JsonlSource::open(&path, None).unwrap_err().to_string();
        assert!(error.contains("none.jsonl: no rows"), "{error}");
    }
}
