//! Parsers of the values of flags.

use std::ops::RangeInclusive;

use vlm_config::MAX_THREADS;

/// The number of threads that a flag may ask for.
pub const THREADS: RangeInclusive<i64> = 1..=MAX_THREADS as i64;

/// Parses the value of a flag that is true or false.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// Parses a value by its name in configuration files.
pub fn parse_named<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

/// Parses a count of at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(e) => Err(format!("expected a whole number: {e}")),
    }
}
