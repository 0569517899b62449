//! Rows from a file that holds a JSON list: the whole file, as LLaVA's data sets are published, a
//! list in an object as `{"data": […]}`, or several objects that each take several lines. The file
//! is scanned once without being parsed, and only the position of each row is kept: sixteen bytes
//! per row.

use std::io::BufRead;

use vlm_display::count;

use crate::error::DataError;
use crate::file_source::{Columns, FileSource, RecordReader, RowFile};
use crate::json_objects::ObjectScan;
use crate::plain_file::PlainFile;
use crate::record::Record;
use crate::row_error::RowError;
use crate::row_reader::json_record;
use crate::row_text::{BYTE_ORDER_MARK, ByteRange, RowTexts};

/// The rows of a `.json` file, read on request.
#[derive(Debug)]
pub(crate) struct JsonList {
    texts: RowTexts,
    rows: Vec<ByteRange>,
}

impl JsonList {
    /// Finds the rows of a file that is one list.
    ///
    /// # Errors
    /// A file that cannot be read, or that is not one complete list with rows.
    pub(crate) fn open(file: RowFile) -> Result<FileSource<Self>, DataError> {
        let rows = scan_list(&file.plain, 0)?;
        file.source("a JSON list", |texts| Self { texts, rows })
    }

    /// Finds the rows of a file that begins with an object and is not JSON lines: those of the list
    /// in that object, or the file's objects themselves.
    ///
    /// # Errors
    /// As for [`Self::open`]; an object with several lists of which none has a known name.
    pub(crate) fn open_objects(file: RowFile) -> Result<FileSource<Self>, DataError> {
        let plain = &file.plain;
        let mut scan = ObjectScan::default();
        read_all(plain, 0, |bytes| scan.take(bytes).map(|()| false))?;
        let wrong = |problem| DataError::content(&plain.path, problem);
        let objects = scan.finish().map_err(wrong)?;
        let (rows, format) = match objects.list().map_err(wrong)? {
            Some(list) => {
                (scan_list(plain, list.offset)?, format!("a JSON list under {:?}", list.key))
            }
            None => (objects.rows, "JSON objects".to_owned()),
        };
        file.source(&format, |texts| Self { texts, rows })
    }
}

impl RecordReader for JsonList {
    fn num_rows(&self) -> usize {
        self.rows.len()
    }

    fn record(&self, index: usize, _: Columns) -> Result<Record, RowError> {
        Ok(json_record(&self.texts.read(self.rows[index])?)?)
    }
}

/// The elements of the list that begins at `offset`. If that is the start of the file, the list
/// must end with the file.
fn scan_list(plain: &PlainFile, offset: u64) -> Result<Vec<ByteRange>, DataError> {
    let mut scan = Scan { offset, is_within: offset > 0, ..Scan::default() };
    read_all(plain, offset, |bytes| {
        scan.take(bytes)?;
        Ok(scan.is_within && scan.is_over)
    })?;
    scan.finish().map_err(|problem| DataError::content(&plain.path, problem))
}

/// Passes all bytes from `offset` on to `take`, until it returns `true`.
fn read_all(
    plain: &PlainFile,
    offset: u64,
    mut take: impl FnMut(&[u8]) -> Result<bool, String>,
) -> Result<(), DataError> {
    let path = &plain.path;
    let mut reader = plain.reader_from(offset)?;
    loop {
        let buffer = reader.fill_buf().map_err(DataError::io(path, "read the rows"))?;
        if buffer.is_empty() {
            return Ok(());
        }
        let length = buffer.len();
        if take(buffer).map_err(|problem| DataError::content(path, problem))? {
            return Ok(());
        }
        reader.consume(length);
    }
}

/// Finds the elements of the outermost list. It knows only strings and brackets; whether an element
/// is a row is checked when it is read.
#[derive(Debug, Default)]
struct Scan {
    /// Number of bytes taken so far.
    offset: u64,
    depth: u32,
    in_string: bool,
    after_backslash: bool,
    /// Start of the current element, and its end as far as it is known.
    element: Option<ByteRange>,
    is_over: bool,
    /// Whether the list is a part of another value, so that more may follow it.
    is_within: bool,
    elements: Vec<ByteRange>,
}

impl Scan {
    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        for &byte in bytes {
            if self.is_over && self.is_within {
                break;
            }
            self.step(byte)?;
            self.offset += 1;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<(), String> {
        if self.in_string {
            self.in_string = self.after_backslash || byte != b'"';
            self.after_backslash = !self.after_backslash && byte == b'\\';
            self.extend();
            return Ok(());
        }
        match byte {
            _ if byte.is_ascii_whitespace() => {}
            _ if BYTE_ORDER_MARK.get(self.offset as usize) == Some(&byte) => {}
            _ if self.is_over => {
                return Err(format!(
                    "expected the file to end with its list, found {1:?} at byte {0}",
                    self.offset,
                    char::from(byte)
                ));
            }
            b'[' if self.depth == 0 => self.depth = 1,
            _ if self.depth == 0 => {
                return Err(format!("expected a JSON list, found {:?}", char::from(byte)));
            }
            b',' if self.depth == 1 => self.end_element(),
            b']' if self.depth == 1 => {
                self.end_element();
                self.depth = 0;
                self.is_over = true;
            }
            b'[' | b'{' => {
                self.extend();
                self.depth += 1;
            }
            b']' | b'}' => {
                self.depth -= 1;
                self.extend();
            }
            _ => {
                self.in_string = byte == b'"';
                self.extend();
            }
        }
        Ok(())
    }

    /// Adds the current byte to the current element.
    fn extend(&mut self) {
        let offset = self.offset;
        let element = self.element.get_or_insert(ByteRange { offset, bytes: 0 });
        element.bytes = offset + 1 - element.offset;
    }

    fn end_element(&mut self) {
        self.elements.extend(self.element.take());
    }

    fn finish(self) -> Result<Vec<ByteRange>, String> {
        if self.offset == 0 || (self.depth == 0 && !self.is_over) {
            return Err("expected a JSON list, found no rows".into());
        }
        if !self.is_over {
            return Err(format!(
                "the file ends within its list, after {}: it is truncated; fetch it again",
                count(self.elements.len(), "complete row")
            ));
        }
        if self.elements.is_empty() {
            return Err("the list has no rows".into());
        }
        Ok(self.elements)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::source::RowSource;

    fn scan(text: &str) -> Result<Vec<&str>, String> {
        let mut scan = Scan::default();
        // In pieces, as a reader hands them over.
        for piece in text.as_bytes().chunks(3) {
            scan.take(piece)?;
        }
        let part = |e: ByteRange| &text[e.offset as usize..(e.offset + e.bytes) as usize];
        Ok(scan.finish()?.into_iter().map(part).collect())
    }

    #[test]
    fn rows_are_found_whatever_their_texts_hold() {
        let text = "\u{feff} [\n{\"a\": \"]}\\\",\\\\\", \"b\": [1, {}]} , 7,\n\"x, y\", [] ]\n";
        let expected = ["{\"a\": \"]}\\\",\\\\\", \"b\": [1, {}]}", "7", "\"x, y\"", "[]"];
        assert_eq!(scan(text).unwrap(), expected);
    }

    #[test]
    fn what_is_no_whole_list_is_refused() {
        for (text, expected) in [
            ("", "no rows"),
            ("  ", "no rows"),
            ("[ ]", "has no rows"),
            ("{}", "expected a JSON list"),
            ("[{}, {\"a\"", "after 1 complete row:"),
            ("[{}] x", "byte 5"),
        ] {
            let error = scan(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_list_within_an_object_and_objects_over_several_lines_are_rows() {
        let row = r#"{"conversations": [{"content": "q"}, {"content": "]}"}]}"#;
        let open = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let file = RowFile::open(file.path(), None, &Arc::default()).unwrap();
            let source = JsonList::open_objects(file);
            source.map_err(|e| e.to_string()).map(|source| {
                (0..source.len()).map(|k| source.row(k).unwrap().turns.len()).collect::<Vec<_>>()
            })
        };
        for (text, expected) in [
            (
                format!("{{\"version\": [1, 2], \"data\": [{row},\n{row}], \"x\": \"]\"}}"),
                vec![2, 2],
            ),
            (format!("{{\"my rows\": [{row}]}}"), vec![2]),
            (row.replace(", ", ",\n  "), vec![2]),
            (format!("{}\n{}", row.replace(", ", ",\n  "), row), vec![2, 2]),
            (format!("{{\"train\": [{row}], \"info\": [{{\"a\": 1}}]}}"), vec![2]),
        ] {
            assert_eq!(open(&text).unwrap(), expected, "{text}");
        }
        for (text, expected) in [
            (format!("{{\"a\": [{row}], \"b\": [{row}]}}"), "\"a\", \"b\""),
            ("{\"0\": {\"x\": 1}, \"1\": {\"x\": 1}}".into(), "\"0\", \"1\""),
            (format!("{{\"data\": [{row}"), "truncated"),
            (format!("{{\"data\": [{row}]"), "truncated"),
        ] {
            let message = open(&text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn llavas_rows_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        let row = r#"{"id":"1","image":"a.jpg","conversations":[{"from":"human","value":"q\n<image>"},
            {"from":"gpt","value":"a"}]}"#;
        std::fs::write(&path, format!("[{row},\n{row}]")).unwrap();
        std::fs::write(folder.path().join("a.jpg"), b"image bytes").unwrap();
        let file = RowFile::open(&path, None, &Arc::default()).unwrap();
        let source = JsonList::open(file).unwrap();
        assert_eq!((source.len(), source.locate(1)), (2, "chat.json[1]".to_owned()));
        let read = source.row(1).unwrap();
        assert_eq!(read.turns[1].content, "a");
        assert_eq!(source.image_bytes(1, 0, &read.images[0]).unwrap(), &b"image bytes"[..]);
        assert!(source.row(2).is_err());
    }
}
