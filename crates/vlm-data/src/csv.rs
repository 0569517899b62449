//! Rows from CSV and TSV files: the first line names the columns, each other record is a row. Only
//! where each record lies is kept in memory: sixteen bytes a row.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use crate::error::DataError;
use crate::file_source::{Columns, FileSource, RecordReader};
use crate::form;
use crate::plain_file::PlainFile;
use crate::record::{Field, Record};
use crate::reject::{Reject, RejectReason};
use crate::row_error::RowError;
use crate::row_options::RowOptions;
use crate::row_text::{ByteRange, RowTexts};

/// What may stand between values.
const DELIMITERS: [u8; 4] = [b'\t', b',', b';', b'|'];

/// The rows of a `.csv` or `.tsv` file, read as they are asked for.
#[derive(Debug)]
pub(crate) struct CsvTable {
    texts: RowTexts,
    columns: Vec<String>,
    delimiter: u8,
    rows: Vec<ByteRange>,
}

/// The columns that the first line of a file names, and what stands between them; `None` where they
/// have no known form.
pub(crate) fn header(start: &[u8]) -> Option<(Vec<String>, u8)> {
    let (columns, delimiter) = any_header(start)?;
    let names: Vec<&str> = columns.iter().map(String::as_str).collect();
    (columns.len() > 1 && form::has_form(&names)).then_some((columns, delimiter))
}

fn any_header(start: &[u8]) -> Option<(Vec<String>, u8)> {
    let start = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start);
    let end = start.iter().position(|&byte| byte == b'\n').unwrap_or(start.len());
    let line = std::str::from_utf8(start[..end].trim_ascii_end()).ok()?;
    let count = |delimiter: u8| line.bytes().filter(|&byte| byte == delimiter).count();
    let delimiter = DELIMITERS.into_iter().rev().max_by_key(|&delimiter| count(delimiter))?;
    let columns = values(line, delimiter)?;
    Some((columns.into_iter().map(|name| name.trim().to_owned()).collect(), delimiter))
}

impl CsvTable {
    /// Finds the records.
    ///
    /// # Errors
    /// No columns of a known form, no rows, a quotation mark that is not closed.
    pub(crate) fn open(
        plain: PlainFile,
        images_root: Option<&Path>,
        options: &Arc<RowOptions>,
    ) -> Result<FileSource<Self>, DataError> {
        let path = plain.path.clone();
        let wrong = |problem: String| DataError::content(&path, problem);
        let start = plain.start()?;
        let (columns, delimiter) =
            any_header(&start).ok_or_else(|| wrong("its first line names no columns".into()))?;
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        if !form::has_form(&names) {
            return Err(wrong(format!(
                "a table whose first line should name columns as image and caption, question and \
                 answer, or conversations; it has: {}",
                crate::record::shown(&columns.join(", "))
            )));
        }
        let mut rows = scan(&mut plain.reader_from(0)?)
            .map_err(DataError::io(&path, "read the rows"))?
            .map_err(wrong)?;
        rows.remove(0);
        if rows.is_empty() {
            return Err(wrong("has a line of column names and no rows".into()));
        }
        let format = if delimiter == b'\t' { "TSV" } else { "CSV" };
        let records = |texts| Self { texts, columns, delimiter, rows };
        FileSource::of_plain(plain, format, images_root, options, records)
    }
}

impl RecordReader for CsvTable {
    fn num_rows(&self) -> usize {
        self.rows.len()
    }

    fn record(&self, index: usize, _: Columns) -> Result<Record, RowError> {
        let invalid = |detail: String| Reject::new(RejectReason::InvalidRow, detail);
        let text = self.texts.read(self.rows[index])?;
        let values = values(&text, self.delimiter)
            .ok_or_else(|| invalid("text behind a closing quotation mark".into()))?;
        if values.len() != self.columns.len() {
            let problem = format!("{} values for {} columns", values.len(), self.columns.len());
            return Err(invalid(problem).into());
        }
        let field = |value: String| if value.is_empty() { Field::Null } else { Field::Text(value) };
        let values = values.into_iter().map(field);
        Ok(Record(self.columns.iter().cloned().zip(values).collect()))
    }
}

/// Where the records lie, the first line included. Line breaks within quotation marks are part of a
/// value; blank lines are no records.
fn scan(reader: &mut impl BufRead) -> std::io::Result<Result<Vec<ByteRange>, String>> {
    const BYTE_ORDER_MARK: u64 = 3;
    let mut rows = Vec::new();
    let mut offset = 0;
    if reader.fill_buf()?.starts_with(b"\xEF\xBB\xBF") {
        reader.consume(BYTE_ORDER_MARK as usize);
        offset = BYTE_ORDER_MARK;
    }
    let (mut start, mut is_quoted, mut is_blank) = (offset, false, true);
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        for &byte in buffer {
            if byte == b'\n' && !is_quoted {
                if !is_blank {
                    rows.push(ByteRange { offset: start, bytes: offset - start });
                }
                (start, is_blank) = (offset + 1, true);
            } else {
                is_quoted ^= byte == b'"';
                is_blank &= byte.is_ascii_whitespace();
            }
            offset += 1;
        }
        let length = buffer.len();
        reader.consume(length);
    }
    if is_quoted {
        return Ok(Err(format!(
            "the record that begins at byte {start} has a quotation mark that is not closed"
        )));
    }
    if !is_blank {
        rows.push(ByteRange { offset: start, bytes: offset - start });
    }
    Ok(if rows.is_empty() { Err("no rows in this file".into()) } else { Ok(rows) })
}

/// The values of one record; `None` where something stands behind a closing quotation mark.
fn values(record: &str, delimiter: u8) -> Option<Vec<String>> {
    let delimiter = char::from(delimiter);
    let mut rest = record.trim_end_matches(['\r', '\n']);
    let mut values = Vec::new();
    loop {
        let mut value = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut tail = quoted;
            loop {
                let end = tail.find('"')?;
                value.push_str(&tail[..end]);
                tail = &tail[end + 1..];
                // Two of them are one within the value.
                match tail.strip_prefix('"') {
                    Some(more) => {
                        value.push('"');
                        tail = more;
                    }
                    None => break,
                }
            }
            rest = tail;
        } else {
            let end = rest.find(delimiter).unwrap_or(rest.len());
            value.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        values.push(value);
        if rest.is_empty() {
            return Some(values);
        }
        rest = rest.strip_prefix(delimiter)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_outside_of_quotation_marks() {
        let text = "\u{feff}image,caption\r\na.jpg,\"one, \"\"two\"\"\n three\"\r\n\r\nb.jpg,\n";
        let rows = scan(&mut text.as_bytes()).unwrap().unwrap();
        let record = |k: usize| {
            let ByteRange { offset, bytes } = rows[k];
            values(&text[offset as usize..(offset + bytes) as usize], b',').unwrap()
        };
        assert_eq!(rows.len(), 3);
        assert_eq!(record(0), ["image", "caption"]);
        assert_eq!(record(1), ["a.jpg", "one, \"two\"\n three"]);
        assert_eq!(record(2), ["b.jpg", ""]);
        assert_eq!(values("\"a\"b,c", b','), None);
        assert!(scan(&mut &b"a,b\n\"x\n"[..]).unwrap().unwrap_err().contains("not closed"));
    }

    #[test]
    fn the_first_line_tells_columns_and_what_is_between_them() {
        assert_eq!(header(b"image\tcaption\n").unwrap().1, b'\t');
        assert_eq!(header(b"file_name;text\r\n").unwrap().0, ["file_name", "text"]);
        assert_eq!(header(b"\"question\",\"answer\",image\n").unwrap().0.len(), 3);
        assert!(header(b"once upon a time, there was\n").is_none());
    }
}
