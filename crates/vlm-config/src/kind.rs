//! The types of settings: how values are read from text, checked and described.

use std::num::IntErrorKind;
use std::path::PathBuf;

use serde_json::{Value, json};
use vlm_data::{DataPaths, Padding};
use vlm_display::shorten;
use vlm_shapes::ProjectorKind;

use crate::values::{DtypeChoice, LossAverage, LrSchedule, OnSaveError, Resume, Seconds};

/// The type of a setting's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// True or false.
    Bool,
    /// A whole number that is not negative, and the largest that its Rust type holds.
    Count(u64),
    /// A number.
    Number,
    /// A duration in seconds, which text may give with units.
    Duration,
    /// Two numbers.
    Pair,
    /// Any text.
    Text,
    /// The path of a file or folder.
    Path,
    /// One or several paths.
    Paths,
    /// One or several texts.
    Words,
    /// One of the given words.
    Choice(&'static [&'static str]),
}

/// A Rust type that a setting may have.
pub(crate) trait SettingType {
    /// The kind of its values.
    const KIND: Kind;
}

macro_rules! kinds {
    ($($type:ty => $kind:expr),* $(,)?) => {
        $(impl SettingType for $type { const KIND: Kind = $kind; })*
    };
}

kinds! {
    bool => Kind::Bool,
    u64 => Kind::Count(u64::MAX),
    i64 => Kind::Count(i64::MAX as u64),
    i32 => Kind::Count(i32::MAX as u64),
    usize => Kind::Count(usize::MAX as u64),
    f64 => Kind::Number,
    Seconds => Kind::Duration,
    [f64; 2] => Kind::Pair,
    String => Kind::Text,
    PathBuf => Kind::Path,
    Resume => Kind::Path,
    DataPaths => Kind::Paths,
    Vec<String> => Kind::Words,
    Padding => Kind::Choice(&["longest", "max", "none"]),
    ProjectorKind => Kind::Choice(&[
        "linear", "mlp", "merged-mlp", "pixel-shuffle", "mlp2x-gelu",
    ]),
    DtypeChoice => Kind::Choice(&["auto", "float32", "bfloat16", "float16"]),
    OnSaveError => Kind::Choice(&["stop", "continue"]),
    LossAverage => Kind::Choice(&["batch", "token"]),
    LrSchedule => Kind::Choice(&["reference", "cosine", "minimind-3v", "wsd", "constant", "linear"]),
}

impl<T: SettingType> SettingType for Option<T> {
    const KIND: Kind = T::KIND;
}

fn too_large(number: &str, largest: u64) -> String {
    format!("{}; it must be at most {largest}", shorten(number, MAX_SHOWN))
}

impl Kind {
    /// Whether a setting of this kind may have several values.
    pub fn is_list(self) -> bool {
        matches!(self, Self::Paths | Self::Words)
    }

    /// A description of the allowed values, for a message.
    pub fn expected(self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Count(_) => "a whole number, not negative".into(),
            Self::Number => "a number".into(),
            Self::Duration => "a number of seconds, or a time such as 90m, 1h30m or 2d".into(),
            Self::Pair => "two numbers, such as 0.9,0.95".into(),
            Self::Text => "text".into(),
            Self::Path => "a path".into(),
            Self::Paths => "a path or a list of paths".into(),
            Self::Words => "text or a list of texts".into(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }

    /// Reads a value from `text`, as it is written on a command line.
    pub(crate) fn parse(self, text: &str) -> Result<Value, String> {
        let wrong = || format!("expected {}", self.expected());
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        match self {
            Self::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" => Ok(true.into()),
                "false" | "0" | "no" => Ok(false.into()),
                _ => Err(wrong()),
            },
            Self::Count(largest) => match text.parse::<u64>() {
                Ok(number) => self.check(number.into()),
                Err(error) if *error.kind() == IntErrorKind::PosOverflow => {
                    Err(too_large(text, largest))
                }
                Err(_) => Err(wrong()),
            },
            Self::Number => number(text).map(Value::from).ok_or_else(wrong),
            Self::Pair => {
                let numbers = text.split(',').map(number).collect::<Option<Vec<f64>>>();
                numbers.map(|numbers| json!(numbers)).ok_or_else(wrong).and_then(|v| self.check(v))
            }
            Self::Paths | Self::Words => Ok(json!([text])),
            Self::Text | Self::Path | Self::Duration | Self::Choice(_) => self.check(text.into()),
        }
    }

    /// Returns the value if it is of this kind. A single text of a list becomes a list.
    pub(crate) fn check(self, value: Value) -> Result<Value, String> {
        let is_text = |value: &Value| value.is_string();
        if let (Self::Count(largest), Some(number)) = (self, value.as_u64())
            && number > largest
        {
            return Err(too_large(&number.to_string(), largest));
        }
        let is_right = match self {
            Self::Bool => value.is_boolean(),
            Self::Count(_) => value.is_u64(),
            Self::Number => value.is_number(),
            Self::Duration => seconds(&value).is_some(),
            Self::Pair => value
                .as_array()
                .is_some_and(|values| values.len() == 2 && values.iter().all(Value::is_number)),
            Self::Text | Self::Path => value.is_string(),
            Self::Paths | Self::Words => {
                is_text(&value)
                    || value
                        .as_array()
                        .is_some_and(|list| !list.is_empty() && list.iter().all(is_text))
            }
            Self::Choice(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        };
        if !is_right {
            let found = shorten(&value.to_string(), MAX_SHOWN);
            return Err(format!("expected {}, found {found}", self.expected()));
        }
        match value {
            Value::String(text) if self.is_list() => Ok(json!([text])),
            value if self == Self::Duration => Ok(json!(seconds(&value))),
            value => Ok(value),
        }
    }

    /// The JSON schema of the kind.
    pub(crate) fn schema(self) -> Value {
        match self {
            Self::Bool => json!({"type": "boolean"}),
            Self::Count(_) => json!({"type": "integer", "minimum": 0}),
            Self::Number => json!({"type": "number"}),
            Self::Duration => json!({"type": ["integer", "string"], "minimum": 0}),
            Self::Pair => {
                json!({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2})
            }
            Self::Text | Self::Path => json!({"type": "string"}),
            Self::Paths | Self::Words => json!({
                "oneOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1},
                ],
            }),
            Self::Choice(words) => json!({"enum": words}),
        }
    }
}

/// The seconds of a duration: a number of seconds, or text of numbers with units, the largest unit
/// first, such as `1h30m`. `None` for any other value.
fn seconds(value: &Value) -> Option<u64> {
    let Some(text) = value.as_str() else { return value.as_u64() };
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let (mut rest, mut total, mut is_empty) = (text, 0_u64, true);
    for (unit, seconds) in [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)] {
        if let Some((number, after)) = rest.split_once(unit) {
            total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(seconds)?)?;
            (rest, is_empty) = (after, false);
        }
    }
    (rest.is_empty() && !is_empty).then_some(total)
}

/// Largest number of characters of a value that a message shows.
pub(crate) const MAX_SHOWN: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_numbers_with_units() {
        for (text, expected) in [
            ("3600", Some(3_600)),
            ("90m", Some(5_400)),
            ("1h30m", Some(5_400)),
            ("2d", Some(172_800)),
            ("1d2h3m4s", Some(93_784)),
            ("45s", Some(45)),
            ("", None),
            ("m", None),
            ("30m1h", None),
            ("1.5h", None),
            ("90 m", None),
            ("-5", None),
            ("99999999999999999999d", None),
            ("999999999999999999d", None),
            ("5mm", None),
        ] {
            assert_eq!(Kind::Duration.parse(text).ok(), expected.map(Value::from), "{text:?}");
        }
        assert_eq!(Kind::Duration.check(json!(60)).unwrap(), 60);
        assert!(Kind::Duration.check(json!(1.5)).unwrap_err().contains("90m"));
    }
}
