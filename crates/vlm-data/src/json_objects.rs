//! Finds the objects of a file that begins with one and is not JSON lines, and the lists in the
//! first of them, without parsing. It tells whether the first object is a row or a wrapper such as
//! `{"data": […]}`.

use crate::form;
use crate::record::shown;
use crate::row_text::{BYTE_ORDER_MARK, ByteRange};

/// Known names of a list of rows, the likeliest first.
const LIST_NAMES: [&str; 11] = [
    "data", "rows", "train", "samples", "examples", "records", "items", "dataset", "instances",
    "training", "annotations",
];
/// Longest key; the rest of a longer one is dropped.
const MAX_KEY_BYTES: usize = 256;
/// Number of keys of the first object that are kept. A wrapper has few.
const MAX_MEMBERS: usize = 1024;

/// A key of the first object, with the start of its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) key: String,
    pub(crate) offset: u64,
    /// The value's first byte.
    first: u8,
    /// For a list, the first byte of its first element.
    element: u8,
}

/// The objects of a file.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) rows: Vec<ByteRange>,
    members: Vec<Member>,
}

impl Objects {
    /// The list that the file wraps; `None` if its objects are the rows.
    ///
    /// # Errors
    /// An object that is not a row and has no list of rows, or several.
    pub(crate) fn list(&self) -> Result<Option<&Member>, String> {
        let keys: Vec<&str> = self.members.iter().map(|member| member.key.as_str()).collect();
        if self.rows.len() > 1 || form::has_form(&keys) {
            return Ok(None);
        }
        let is_rows = |member: &&Member| member.first == b'[' && member.element == b'{';
        let lists: Vec<&Member> = self.members.iter().filter(is_rows).collect();
        if let [list] = lists[..] {
            return Ok(Some(list));
        }
        let by_name = |name: &&str| lists.iter().find(|list| list.key.eq_ignore_ascii_case(name));
        if let Some(list) = LIST_NAMES.iter().find_map(by_name) {
            return Ok(Some(list));
        }
        let named = |members: &[&Member]| {
            let keys = members.iter().take(8).map(|member| format!("{:?}", shown(&member.key)));
            keys.collect::<Vec<_>>().join(", ")
        };
        Err(if lists.is_empty() {
            let all: Vec<&Member> = self.members.iter().collect();
            format!(
                "expected JSON lines, a list of rows, or a list under \"data\"; found one JSON \
                 object that is neither a row nor has a list of rows, with the keys: {}",
                named(&all)
            )
        } else {
            format!(
                "found one JSON object with several lists ({}); rename the list of rows to \"data\"",
                named(&lists)
            )
        })
    }
}

/// Takes the bytes of a file piece by piece.
#[derive(Debug, Default)]
pub(crate) struct ObjectScan {
    offset: u64,
    depth: u32,
    in_string: bool,
    after_backslash: bool,
    start: u64,
    objects: Objects,
    /// The last string of the first object, and whether a value is expected.
    key: Vec<u8>,
    is_key: bool,
    expects_value: bool,
    expects_element: bool,
}

impl ObjectScan {
    /// Takes more bytes.
    ///
    /// # Errors
    /// Bytes that do not belong to an object.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
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
            if self.is_key && self.in_string && self.key.len() < MAX_KEY_BYTES {
                self.key.push(byte);
            }
            return Ok(());
        }
        if byte.is_ascii_whitespace() {
            return Ok(());
        }
        let is_first = self.objects.rows.is_empty();
        if is_first && self.depth >= 1 {
            self.note(byte);
        }
        match byte {
            b'{' if self.depth == 0 => {
                self.start = self.offset;
                self.depth = 1;
            }
            b',' if self.depth == 0 => {}
            _ if self.depth == 0 && BYTE_ORDER_MARK.get(self.offset as usize) == Some(&byte) => {}
            _ if self.depth == 0 => {
                return Err(format!(
                    "expected a JSON object at byte {}, found {:?}",
                    self.offset,
                    char::from(byte)
                ));
            }
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    let bytes = self.offset + 1 - self.start;
                    self.objects.rows.push(ByteRange { offset: self.start, bytes });
                }
            }
            b'"' => self.in_string = true,
            _ => {}
        }
        Ok(())
    }

    /// Records the keys of the first object and the first bytes of their values.
    fn note(&mut self, byte: u8) {
        if self.expects_element {
            self.expects_element = false;
            if let Some(member) = self.objects.members.last_mut() {
                member.element = byte;
            }
        }
        self.is_key = false;
        if self.depth != 1 {
            return;
        }
        match byte {
            b':' => self.expects_value = true,
            _ if self.expects_value => {
                self.expects_value = false;
                if self.objects.members.len() < MAX_MEMBERS {
                    self.expects_element = byte == b'[';
                    let key = String::from_utf8_lossy(&self.key).into_owned();
                    let offset = self.offset;
                    self.objects.members.push(Member { key, offset, first: byte, element: 0 });
                }
            }
            b'"' => {
                self.key.clear();
                self.is_key = true;
            }
            _ => {}
        }
    }

    /// Whether the bytes taken so far, which may be only the start of the file, have a list of
    /// objects and no key of a row.
    pub(crate) fn looks_like_wrapper(&self) -> bool {
        let members = &self.objects.members;
        let keys: Vec<&str> = members.iter().map(|member| member.key.as_str()).collect();
        let has_list = members.iter().any(|m| m.first == b'[' && m.element == b'{');
        has_list && !form::has_form(&keys)
    }

    /// The objects of the file.
    ///
    /// # Errors
    /// A file that ends within an object.
    pub(crate) fn finish(self) -> Result<Objects, String> {
        if self.depth > 0 {
            return Err(format!(
                "the file ends within an object, after {} complete ones: it is truncated; fetch it \
                 again",
                self.objects.rows.len()
            ));
        }
        Ok(self.objects)
    }
}
