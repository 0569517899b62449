//! The values of one row as they are in its file, for every file format: keys with text, numbers,
//! bytes, lists and objects. This module knows neither conversations nor images.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Field {
    /// JSON's null, or a missing value of a column.
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    /// Bytes, which only binary columns have.
    Bytes(Bytes),
    List(Vec<Field>),
    Object(Record),
}

/// Keys with their values, in the order of the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Record(pub(crate) Vec<(String, Field)>);

impl Record {
    /// The value of `key`, null if there is none. If a key occurs twice the last value counts, as
    /// in Python.
    pub(crate) fn get(&self, key: &str) -> &Field {
        let found = self.0.iter().rev().find(|(name, _)| name == key);
        found.map_or(&Field::Null, |(_, value)| value)
    }

    /// The first of `keys` that has a value, with its name in the record. Keys are compared without
    /// regard to case, and `-` and a space count as `_`.
    pub(crate) fn first_of(&self, keys: &[&str]) -> Option<(&str, &Field)> {
        keys.iter().find_map(|key| {
            let is_it = |(name, value): &&(String, Field)| !value.is_null() && is_key(name, key);
            self.0.iter().rev().find(is_it).map(|(name, value)| (name.as_str(), value))
        })
    }

    /// The names of the keys, for a message.
    pub(crate) fn keys(&self) -> String {
        const MAX_SHOWN: usize = 12;
        let mut keys: Vec<_> = self.0.iter().take(MAX_SHOWN).map(|(key, _)| shown(key)).collect();
        if self.0.len() > MAX_SHOWN {
            keys.push(format!("and {} more", self.0.len() - MAX_SHOWN));
        }
        if keys.is_empty() { "no keys".to_owned() } else { keys.join(", ") }
    }
}

/// Whether `name` is `key`, which is in lower case with `_` between its words.
pub(crate) fn is_key(name: &str, key: &str) -> bool {
    let plain = |byte: u8| match byte {
        b'-' | b' ' => b'_',
        other => other.to_ascii_lowercase(),
    };
    name.len() == key.len() && name.bytes().map(plain).eq(key.bytes())
}

impl Field {
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether the value is empty: null, blank text, a list of nulls, an object of empty values.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Text(text) => text.trim().is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::List(list) => list.iter().all(Self::is_null),
            Self::Object(record) => record.0.iter().all(|(_, value)| value.is_empty()),
            Self::Bool(_) | Self::Number(_) => false,
        }
    }

    /// The kind of the value with an article, for a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// The record in the value.
    ///
    /// # Errors
    /// A value that is not an object.
    pub(crate) fn into_record(self) -> Result<Record, String> {
        match self {
            Self::Object(record) => Ok(record),
            other => Err(format!("expected an object, found {}", other.kind())),
        }
    }

    /// The value as JSON; `None` if it has bytes, which JSON does not.
    pub(crate) fn to_json(&self) -> Option<Value> {
        Some(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Number(number) => Value::Number(number.clone()),
            Self::Text(text) => Value::String(text.clone()),
            Self::Bytes(_) => return None,
            Self::List(items) => items.iter().map(Self::to_json).collect::<Option<_>>()?,
            Self::Object(record) => {
                let entry = |(key, value): &(String, Self)| Some((key.clone(), value.to_json()?));
                record.0.iter().map(entry).collect::<Option<_>>()?
            }
        })
    }

    /// Parses JSON as Python writes it: `NaN`, `Infinity` and `-Infinity` are read as null.
    ///
    /// # Errors
    /// Text that is not JSON.
    pub(crate) fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).or_else(|error| {
            let plain = without_python_numbers(text);
            let again = plain.and_then(|text| serde_json::from_str(&text).ok());
            again.ok_or_else(|| explain(text, &error))
        })
    }
}

/// `text` cut to a length that fits into a message.
pub(crate) fn shown(text: &str) -> String {
    vlm_display::shorten(text, 120)
}

fn explain(text: &str, error: &serde_json::Error) -> String {
    let start = text.trim_start_matches(|c: char| c == '{' || c == '[' || c.is_whitespace());
    if start.starts_with('\'') {
        return format!(
            "Python syntax instead of JSON ({}…): write it with json.dumps",
            text.chars().take(24).collect::<String>()
        );
    }
    format!("not JSON: {error}")
}

/// `text` with the numbers that only Python writes replaced by null; `None` if it has none.
fn without_python_numbers(text: &str) -> Option<String> {
    const NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    let mut plain = String::with_capacity(text.len());
    let (mut in_string, mut after_backslash, mut found) = (false, false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if !in_string && let Some(number) = NUMBERS.iter().find(|number| rest.starts_with(**number))
        {
            plain.push_str("null");
            rest = &rest[number.len()..];
            found = true;
            continue;
        }
        in_string = if in_string { after_backslash || c != '"' } else { c == '"' };
        after_backslash = in_string && !after_backslash && c == '\\';
        plain.push(c);
        rest = &rest[c.len_utf8()..];
    }
    found.then_some(plain)
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Field, E> {
        Ok(Field::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Field, E> {
        Ok(Field::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Field, E> {
        Ok(Field::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Field, E> {
        Ok(Number::from_f64(value).map_or(Field::Null, Field::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Field, E> {
        Ok(Field::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Field, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Field::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Field, A::Error> {
        let mut record = Record::default();
        while let Some(entry) = entries.next_entry()? {
            record.0.push(entry);
        }
        Ok(Field::Object(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_only_python_writes_are_null_and_its_strings_stay() {
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \" NaN", "d": 1}"#;
        let Field::Object(record) = Field::from_json(text).unwrap() else { panic!() };
        assert!(record.get("a").is_null());
        assert_eq!(record.get("b"), &Field::List(vec![Field::Null, Field::Null]));
        assert_eq!(record.get("c"), &Field::Text("NaN \" NaN".into()));
        assert_eq!(record.get("d"), &Field::Number(1.into()));
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let Field::Object(record) = Field::from_json(r#"{"a": 1, "a": 2}"#).unwrap() else {
            panic!()
        };
        assert_eq!(record.get("a"), &Field::Number(2.into()));
        assert_eq!(record.first_of(&["b", "a"]).unwrap().0, "a");
    }

    #[test]
    fn text_that_is_not_json_or_nested_too_deep_is_an_error() {
        assert!(Field::from_json("{'from': 'human'}").unwrap_err().contains("json.dumps"));
        assert!(Field::from_json("<html>").unwrap_err().contains("not JSON"));
        assert!(Field::from_json(&"[".repeat(100_000)).unwrap_err().contains("recursion"));
    }
}
