//! Rows from a file that is one JSON list, as LLaVA's data sets are published. The list is scanned
//! once, without being parsed; only where each row lies is kept: sixteen bytes a row.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::DataError;
use crate::image_root::ImageRoot;
use crate::obstacle::Obstacle;
use crate::reject::{Reject, RejectReason};
use crate::row_text::{file_name, folder_of, read_row_text};
use crate::rows::{Row, RowImage};
use crate::source::RowSource;

/// The rows of a `.json` file, read as they are asked for.
#[derive(Debug)]
pub struct JsonListSource {
    path: PathBuf,
    file: File,
    rows: Vec<Element>,
    images: ImageRoot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Element {
    offset: u64,
    bytes: u64,
}

impl JsonListSource {
    /// Opens `path` and finds its rows. Image names are relative to `images_root`, without one to
    /// the folder of `path`.
    ///
    /// # Errors
    /// A file or folder that cannot be read, or what is not one whole list with rows in it.
    pub fn open(path: &Path, images_root: Option<&Path>) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path, "open the rows"))?;
        let mut scan = Scan::default();
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        loop {
            let buffer = reader.fill_buf().map_err(DataError::io(path, "read the rows"))?;
            if buffer.is_empty() {
                break;
            }
            let length = buffer.len();
            scan.take(buffer).map_err(|problem| DataError::content(path, problem))?;
            reader.consume(length);
        }
        let rows = scan.finish().map_err(|problem| DataError::content(path, problem))?;
        let images = ImageRoot::open(images_root.unwrap_or(folder_of(path)))?;
        Ok(Self { path: path.to_owned(), file, rows, images })
    }
}

impl RowSource for JsonListSource {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn row(&self, index: usize) -> Result<Row, Obstacle> {
        let Some(Element { offset, bytes }) = self.rows.get(index).copied() else {
            return Err(Obstacle::Row(Reject::new(
                RejectReason::InvalidRow,
                format!("row {index} of {}", self.rows.len()),
            )));
        };
        Ok(Row::from_json(&read_row_text(&self.file, &self.path, offset, bytes)?)?)
    }

    fn image_bytes(&self, _: usize, _: usize, image: &RowImage) -> Result<Bytes, Obstacle> {
        self.images.read(&image.name).map(Bytes::from)
    }

    fn locate(&self, index: usize) -> String {
        format!("{}[{index}]", file_name(&self.path))
    }
}

/// Finds the elements of the outermost list. Knows strings and brackets; whether an element is a
/// row is seen when it is read.
#[derive(Debug, Default)]
struct Scan {
    /// Bytes taken so far.
    offset: u64,
    depth: u32,
    in_string: bool,
    after_backslash: bool,
    /// Where the element that has begun begins, and where it ends as far as seen.
    element: Option<Element>,
    is_over: bool,
    elements: Vec<Element>,
}

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

impl Scan {
    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        for &byte in bytes {
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
                    "the list ends, but byte {} goes on with {:?}",
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

    /// The present byte belongs to an element.
    fn extend(&mut self) {
        let offset = self.offset;
        let element = self.element.get_or_insert(Element { offset, bytes: 0 });
        element.bytes = offset + 1 - element.offset;
    }

    fn end_element(&mut self) {
        self.elements.extend(self.element.take());
    }

    fn finish(self) -> Result<Vec<Element>, String> {
        let num_rows = self.elements.len();
        if self.offset == 0 || (self.depth == 0 && !self.is_over) {
            return Err("no rows in this file; expected a JSON list".into());
        }
        if !self.is_over {
            return Err(format!(
                "the file ends within its list, after {num_rows} whole rows: it is cut off; fetch \
                 it anew"
            ));
        }
        if num_rows == 0 {
            return Err("the list has no rows".into());
        }
        Ok(self.elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> Result<Vec<&str>, String> {
        let mut scan = Scan::default();
        // In pieces, as a reader hands them over.
        for piece in text.as_bytes().chunks(3) {
            scan.take(piece)?;
        }
        let part = |e: Element| &text[e.offset as usize..(e.offset + e.bytes) as usize];
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
            ("[{}, {\"a\"", "after 1 whole rows"),
            ("[{}] x", "byte 5"),
        ] {
            let error = scan(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn llavas_rows_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        let row = r#"{"id":"1","image":"a.jpg","conversations":[{"from":"human","value":"q\n<image>"},
            {"from":"gpt","value":"a"}]}"#;
        std::fs::write(&path, format!("[{row},\n{row}]")).unwrap();
        std::fs::write(folder.path().join("a.jpg"), b"picture").unwrap();
        let source = JsonListSource::open(&path, None).unwrap();
        assert_eq!((source.len(), source.locate(1)), (2, "chat.json[1]".to_owned()));
        let read = source.row(1).unwrap();
        assert_eq!(read.turns[1].content, "a");
        assert_eq!(source.image_bytes(1, 0, &read.images[0]).unwrap(), &b"picture"[..]);
        assert!(source.row(2).is_err());
    }
}
