//! Writes JSON as Python's `json.dumps` does with `ensure_ascii=False`, which is the filter `tojson`
//! of Hugging Face's chat templates.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// JSON in one line, with a space after each comma and colon.
///
/// # Errors
/// A value that is not JSON.
pub(crate) fn in_one_line(value: &impl Serialize) -> Result<String, String> {
    with_formatter(value, Spaced)
}

/// JSON in the form of `formatter`.
///
/// # Errors
/// A value that is not JSON.
pub(crate) fn with_formatter(
    value: &impl Serialize,
    formatter: impl Formatter,
) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, formatter);
    value.serialize(&mut serializer).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

/// A space after each comma and colon.
struct Spaced;

impl Spaced {
    fn separate<W: ?Sized + Write>(writer: &mut W, is_first: bool) -> io::Result<()> {
        if is_first { Ok(()) } else { writer.write_all(b", ") }
    }
}

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        is_first: bool,
    ) -> io::Result<()> {
        Self::separate(writer, is_first)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        is_first: bool,
    ) -> io::Result<()> {
        Self::separate(writer, is_first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_has_the_spaces_of_python_and_keeps_order_and_letters() {
        // python3: json.dumps(value, ensure_ascii=False)
        let value = json!({"z": [1, 2.5, null, true], "a": {"<é>": "a, b: c"}, "e": [], "o": {}});
        assert_eq!(
            in_one_line(&value).unwrap(),
            r#"{"z": [1, 2.5, null, true], "a": {"<é>": "a, b: c"}, "e": [], "o": {}}"#
        );
    }
}
