//! Checks the footer and the headers of the pages of a Parquet file before the crate `parquet` reads
//! them. It calls itself for each level of a nested schema, so that a file of some kilobytes would
//! overflow the stack, and it skips as many elements of an unknown list as the list claims to have,
//! also beyond the end of the file.
//!
//! The footer is a structure in Thrift's compact form. Its field 2 is the list of the schema's
//! elements, depth first, of which each has its number of children as field 5.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Last bytes of a file: the length of the footer and four letters.
const TRAILER: u64 = 8;

/// The nesting of the schema in levels, of which a list takes up to three; `None` if the footer
/// cannot be read or has a list that is longer than its bytes.
///
/// # Errors
/// A failure of the system.
pub(super) fn schema_depth(file: &File, length: u64) -> std::io::Result<Option<usize>> {
    let Some(trailer_start) = length.checked_sub(TRAILER) else { return Ok(None) };
    let mut trailer = [0; TRAILER as usize];
    file.read_exact_at(&mut trailer, trailer_start)?;
    let [a, b, c, d, ..] = trailer;
    let footer_bytes = u32::from_le_bytes([a, b, c, d]);
    let Some(start) = trailer_start.checked_sub(footer_bytes.into()) else { return Ok(None) };
    let mut footer = vec![0; footer_bytes as usize];
    file.read_exact_at(&mut footer, start)?;
    Ok(is_whole_structure(&footer).then(|| Compact(&footer).schema_depth()).flatten())
}

/// Whether `bytes` begin with a whole structure, which is the header of a page or a footer. Lists of
/// booleans are refused: neither has any, and the crate `parquet` takes their elements for empty.
pub(super) fn is_whole_structure(bytes: &[u8]) -> bool {
    Compact(bytes).skip(STRUCT, 0).is_some()
}

/// Types of fields.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// The rest of a structure. Its methods return `None` where it ends too early.
struct Compact<'a>(&'a [u8]);

impl Compact<'_> {
    fn schema_depth(&mut self) -> Option<usize> {
        const SCHEMA: i64 = 2;
        let mut id = 0;
        loop {
            match self.field(&mut id)? {
                0 => return None,
                LIST if id == SCHEMA => return self.depth_of_elements(),
                kind => self.skip(kind, 0)?,
            }
        }
    }

    fn depth_of_elements(&mut self) -> Option<usize> {
        const NUM_CHILDREN: i64 = 5;
        let (mut deepest, mut open) = (0, Vec::new());
        let (count, kind) = self.list()?;
        if kind != STRUCT {
            return None;
        }
        for _ in 0..count {
            let (mut id, mut children) = (0, 0);
            loop {
                match self.field(&mut id)? {
                    0 => break,
                    I32 if id == NUM_CHILDREN => children = self.number()?,
                    kind => self.skip(kind, 0)?,
                }
            }
            if children > 0 {
                open.push(children);
                deepest = deepest.max(open.len());
                continue;
            }
            // A leaf ends every group of which it is the last child.
            while let Some(left) = open.last_mut() {
                *left -= 1;
                if *left > 0 {
                    break;
                }
                open.pop();
            }
        }
        Some(deepest)
    }

    /// The type of the next field, whose number replaces `id`; 0 at the end of the structure.
    fn field(&mut self, id: &mut i64) -> Option<u8> {
        let header = self.byte()?;
        let step = i64::from(header >> 4);
        if header != 0 {
            *id = if step == 0 { self.number()? } else { *id + step };
        }
        Some(header & 0x0f)
    }

    /// The number of a list's elements, and their type.
    fn list(&mut self) -> Option<(u64, u8)> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        Some((count, header & 0x0f))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        const MAX_DEPTH: usize = 16;
        if depth > MAX_DEPTH {
            return None;
        }
        match kind {
            TRUE | FALSE => {}
            BYTE => drop(self.byte()?),
            I16 | I32 | I64 => drop(self.varint()?),
            DOUBLE => self.0 = self.0.get(8..)?,
            UUID => self.0 = self.0.get(16..)?,
            BINARY => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.0 = self.0.get(length..)?;
            }
            LIST | SET => {
                let (count, kind) = self.list()?;
                self.skip_elements(count, &[kind], depth)?;
            }
            MAP => {
                let count = self.varint()?;
                if count > 0 {
                    let kinds = self.byte()?;
                    self.skip_elements(count, &[kinds >> 4, kinds & 0x0f], depth)?;
                }
            }
            STRUCT => {
                let mut id = 0;
                loop {
                    match self.field(&mut id)? {
                        0 => break,
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Skips `count` elements, each of which has a value of each of `kinds`.
    fn skip_elements(&mut self, count: u64, kinds: &[u8], depth: usize) -> Option<()> {
        let is_possible = count <= self.0.len() as u64 && !kinds.iter().any(|kind| *kind <= FALSE);
        if count > 0 && !is_possible {
            return None;
        }
        for _ in 0..count {
            kinds.iter().try_for_each(|&kind| self.skip(kind, depth + 1))?;
        }
        Some(())
    }

    fn number(&mut self) -> Option<i64> {
        // The sign is the lowest bit.
        self.varint().map(|value| (value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }
}

/// A page's sizes after and before decompression, from its header: its first three fields are
/// numbers, of which the first is the kind of the page.
pub(super) fn page_sizes(header: &[u8]) -> Option<(u64, u64)> {
    let (mut header, mut id) = (Compact(header), 0);
    let mut numbers = [0; 3];
    for (number, expected) in numbers.iter_mut().zip(1..) {
        if header.field(&mut id)? != I32 || id != expected {
            return None;
        }
        *number = u64::try_from(header.number()?).ok()?;
    }
    Some((numbers[1], numbers[2]))
}

/// A file whose schema has `depth` groups around one column.
#[cfg(test)]
pub(super) fn nested_file(depth: usize) -> Vec<u8> {
    let mut footer = vec![0x15, 2, 0x19, 0xfc];
    let mut count = depth + 1;
    while count >= 0x80 {
        footer.push(count as u8 | 0x80);
        count >>= 7;
    }
    footer.push(count as u8);
    // A required group "a" with one child.
    footer.extend([0x35, 0, 0x18, 1, b'a', 0x15, 2, 0].repeat(depth));
    // A required column "x" of 32-bit numbers; then no rows, and no row groups.
    footer.extend([0x15, 2, 0x25, 0, 0x18, 1, b'x', 0, 0x16, 0, 0x19, 0x0c, 0]);
    let length = (footer.len() as u32).to_le_bytes();
    [&b"PAR1"[..], &footer, &length, b"PAR1"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(bytes: &[u8]) -> Option<usize> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        schema_depth(&File::open(file.path()).unwrap(), bytes.len() as u64).unwrap()
    }

    #[test]
    fn the_depth_of_a_schema_is_that_of_its_groups() {
        for levels in [1, 7, 200, 5000] {
            assert_eq!(depth(&nested_file(levels)), Some(levels));
        }
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");
        for (name, levels) in [("parquet/names.parquet", 1), ("rows/conversations.parquet", 4)] {
            let bytes = std::fs::read(format!("{golden}/{name}")).unwrap();
            assert_eq!(depth(&bytes), Some(levels), "{name}");
        }
        assert_eq!(depth(b"PAR1\xff\0\0\0PAR1"), None);
        assert_eq!(depth(b"PAR1"), None);
    }

    #[test]
    fn a_list_that_is_longer_than_its_bytes_is_refused_at_once() {
        // Field 1 is a list of 2³¹ − 1 elements of a type, and then the structure ends.
        let list = |kind: u8| vec![0x19, 0xf0 | kind, 0xff, 0xff, 0xff, 0xff, 0x07, 0];
        for kind in 0..16 {
            assert!(!is_whole_structure(&list(kind)), "{kind}");
        }
        assert!(!is_whole_structure(&[0x19, 0x21, 1, 1, 0]), "booleans");
        // A map of as many elements: their number, and the types of keys and values.
        assert!(!is_whole_structure(&[0x1b, 0xff, 0xff, 0xff, 0xff, 0x07, 0x77, 0]));
        assert!(is_whole_structure(&[0x19, 0x25, 2, 4, 0x1b, 1, 0x55, 2, 4, 0]));
        assert!(is_whole_structure(&[0x19, 0x01, 0]), "no booleans");
        let mut file = nested_file(1);
        assert_eq!(depth(&file), Some(1));
        // The same list as an unknown field at the end of the footer.
        let end = file.len() - 9;
        file.splice(
            end..=end,
            [[0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07].as_slice(), &[0]].concat(),
        );
        let footer_bytes = (file.len() - 12) as u32;
        let at = file.len() - 8;
        file[at..at + 4].copy_from_slice(&footer_bytes.to_le_bytes());
        assert_eq!(depth(&file), None);
    }

    #[test]
    fn sizes_of_a_page_are_read_from_its_header() {
        // A data page of 100 bytes, 70 of them after compression.
        assert_eq!(page_sizes(&[0x15, 0, 0x15, 200, 1, 0x15, 140, 1]), Some((100, 70)));
        assert_eq!(page_sizes(&[0x15, 0, 0x15, 199, 1, 0x15, 140, 1]), None, "a negative size");
        assert_eq!(page_sizes(&[0x15, 0, 0x25, 200, 1]), None, "another field");
        assert_eq!(page_sizes(&[0x15, 0, 0x15]), None);
    }
}
