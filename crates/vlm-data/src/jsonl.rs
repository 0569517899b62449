//! Rows from a file of JSON lines. Only the position of each line is kept in memory: twenty bytes
//! per row.

use std::io::BufRead;

use crate::error::DataError;
use crate::file_source::{Columns, FileSource, RecordReader, RowFile};
use crate::record::Record;
use crate::row_error::RowError;
use crate::row_reader::json_record;
use crate::row_text::{ByteRange, RowTexts, skip_mark};

/// The lines of a `.jsonl` file, read on request.
#[derive(Debug)]
pub(crate) struct JsonLines {
    texts: RowTexts,
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    range: ByteRange,
    /// Number of the line from 1, as editors count, including blank lines.
    number: u32,
}

impl JsonLines {
    /// Finds the lines; blank lines are not rows.
    ///
    /// # Errors
    /// A file that cannot be read or has no row.
    pub(crate) fn open(file: RowFile) -> Result<FileSource<Self>, DataError> {
        let plain = &file.plain;
        let mut reader = plain.reader_from(0)?;
        let lines =
            index_lines(&mut reader).map_err(DataError::io(&plain.path, "read the rows"))?;
        if lines.is_empty() {
            return Err(DataError::content(
                &plain.path,
                "no rows in this file; expected one JSON object per line: {\"conversations\": \
                 [{\"role\": \"user\", \"content\": \"<image>\\n…\"}, {\"role\": \"assistant\", \
                 \"content\": \"…\"}], \"image\": \"a.jpg\"}",
            ));
        }
        file.source("JSON lines", |texts| Self { texts, lines })
    }
}

impl RecordReader for JsonLines {
    fn num_rows(&self) -> usize {
        self.lines.len()
    }

    fn record(&self, index: usize, _: Columns) -> Result<Record, RowError> {
        Ok(json_record(&self.texts.read(self.lines[index].range)?)?)
    }

    fn location(&self, index: usize) -> String {
        match self.lines.get(index) {
            Some(line) => format!(":{}", line.number),
            None => format!(", row {index}"),
        }
    }
}

fn index_lines(reader: &mut impl BufRead) -> std::io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let offset = skip_mark(reader)?;
    let mut line = Line { range: ByteRange { offset, bytes: 0 }, number: 1 };
    let mut is_blank = true;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        let newline = memchr::memchr(b'\n', buffer);
        let part = &buffer[..newline.unwrap_or(buffer.len())];
        is_blank &= part.iter().all(u8::is_ascii_whitespace);
        line.range.bytes += part.len() as u64;
        let consumed = part.len() + usize::from(newline.is_some());
        reader.consume(consumed);
        if newline.is_some() {
            if !is_blank {
                lines.push(line);
            }
            let offset = line.range.offset + line.range.bytes + 1;
            let range = ByteRange { offset, bytes: 0 };
            line = Line { range, number: line.number.saturating_add(1) };
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
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::reject::RejectReason;
    use crate::row_error::failing_file;
    use crate::rows::RowImage;
    use crate::source::RowSource;

    fn open(path: &Path) -> Result<FileSource<JsonLines>, DataError> {
        JsonLines::open(RowFile::open(path, None, &Arc::default())?)
    }

    const ROW: &str = r#"{"conversations":[{"content":"好"}],"image":"a.jpg"}"#;

    #[test]
    fn rows_are_found_by_line_and_blank_lines_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, format!("\u{feff}{ROW}\r\n\n  \n{{broken\n{ROW}")).unwrap();
        std::fs::write(folder.path().join("a.jpg"), b"image bytes").unwrap();
        let source = open(&path).unwrap();
        assert_eq!(source.len(), 3);
        let row = source.row(0).unwrap();
        assert_eq!(row.turns[0].content, "<image>\n好");
        assert_eq!(source.image_bytes(0, 0, &row.images[0]).unwrap(), &b"image bytes"[..]);
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
    fn a_row_that_the_system_fails_to_read_is_a_fatal_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, ROW).unwrap();
        let mut source = open(&path).unwrap();
        source.records.texts.file = failing_file();
        let Err(RowError::Fatal(error)) = source.row(0) else { panic!("expected a failure") };
        let message = error.to_string();
        assert!(message.contains("rows.jsonl: cannot read the row: "), "{message}");
    }

    #[test]
    fn a_missing_or_empty_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.jsonl");
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("none.jsonl"), "{error}");
        std::fs::write(&path, "\n \n").unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("none.jsonl: no rows"), "{error}");
    }
}
