//! Rows from CSV and TSV files: the first line names the columns, and every other record is a row.
//! Only the position of each record is kept in memory: sixteen bytes per row.

use std::io::BufRead;

use vlm_display::count;

use crate::error::DataError;
use crate::file_source::{Columns, FileSource, RecordReader, RowFile};
use crate::form;
use crate::record::{Field, Record};
use crate::reject::Reject;
use crate::row_error::RowError;
use crate::row_text::{ByteRange, RowTexts, skip_mark, without_mark};

/// The delimiters that are recognised.
const DELIMITERS: [u8; 4] = [b'\t', b',', b';', b'|'];

/// The rows of a `.csv` or `.tsv` file, read on request.
#[derive(Debug)]
pub(crate) struct CsvTable {
    texts: RowTexts,
    columns: Vec<String>,
    delimiter: u8,
    rows: Vec<ByteRange>,
}

/// The columns that the first line of a file names, and its delimiter; `None` where the columns
/// have no known form.
pub(crate) fn header(start: &[u8]) -> Option<(Vec<String>, u8)> {
    let (columns, delimiter) = any_header(start)?;
    let names: Vec<&str> = columns.iter().map(String::as_str).collect();
    (columns.len() > 1 && form::has_form(&names)).then_some((columns, delimiter))
}

fn any_header(start: &[u8]) -> Option<(Vec<String>, u8)> {
    let start = without_mark(start);
    let end = start.iter().position(|&byte| byte == b'\n').unwrap_or(start.len());
    let line = std::str::from_utf8(start[..end].trim_ascii_end()).ok()?;
    let occurrences = |delimiter: u8| line.bytes().filter(|&byte| byte == delimiter).count();
    let delimiter = DELIMITERS.into_iter().rev().max_by_key(|&delimiter| occurrences(delimiter))?;
    let columns = values(line, delimiter)?;
    Some((columns.into_iter().map(|name| name.trim().to_owned()).collect(), delimiter))
}

impl CsvTable {
    /// Finds the records.
    ///
    /// # Errors
    /// Columns of no known form, a file without rows, or a quotation mark that is not closed.
    pub(crate) fn open(file: RowFile) -> Result<FileSource<Self>, DataError> {
        let plain = &file.plain;
        let wrong = |problem: String| DataError::content(&plain.path, problem);
        let start = plain.start()?;
        let (columns, delimiter) =
            any_header(&start).ok_or_else(|| wrong("the first line names no columns".into()))?;
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        if !form::has_form(&names) {
            return Err(wrong(format!(
                "expected a first line with columns such as image and caption, question and \
                 answer, or conversations; found: {}",
                crate::record::shown(&columns.join(", "))
            )));
        }
        let mut rows = scan(&mut plain.reader_from(0)?)
            .map_err(DataError::io(&plain.path, "read the rows"))?
            .map_err(wrong)?;
        rows.remove(0);
        if rows.is_empty() {
            return Err(wrong("has a line of column names, but no rows".into()));
        }
        let format = if delimiter == b'\t' { "TSV" } else { "CSV" };
        file.source(format, |texts| Self { texts, columns, delimiter, rows })
    }
}

impl RecordReader for CsvTable {
    fn num_rows(&self) -> usize {
        self.rows.len()
    }

    fn record(&self, index: usize, _: Columns) -> Result<Record, RowError> {
        let text = self.texts.read(self.rows[index])?;
        let values = values(&text, self.delimiter)
            .ok_or_else(|| Reject::invalid_row("text after a closing quotation mark"))?;
        if values.len() != self.columns.len() {
            let columns = count(self.columns.len(), "column");
            let problem = format!("{} for {columns}", count(values.len(), "value"));
            return Err(Reject::invalid_row(problem).into());
        }
        let field = |value: String| if value.is_empty() { Field::Null } else { Field::Text(value) };
        let values = values.into_iter().map(field);
        Ok(Record(self.columns.iter().cloned().zip(values).collect()))
    }
}

/// The positions of the records, the first line included. Line breaks within quotation marks are
/// part of a value, and blank lines are not records.
fn scan(reader: &mut impl BufRead) -> std::io::Result<Result<Vec<ByteRange>, String>> {
    let mut rows = Vec::new();
    let mut offset = skip_mark(reader)?;
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

/// The values of one record; `None` where text follows a closing quotation mark.
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
                // Two quotation marks are one within the value.
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
