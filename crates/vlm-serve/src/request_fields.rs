//! The values of the fields of a request: their types and ranges, and which have no effect.

use serde_json::{Map, Value, json};

use crate::api_error::ApiError;

/// Largest number of stop texts, and of characters of one.
const MAX_STOP: (usize, usize) = (4, 1000);

/// Whether a field that is not implemented has a value with which it changes nothing.
pub(crate) fn has_no_effect(name: &str, value: &Value) -> bool {
    let is_number = |neutral: f64| value.as_f64() == Some(neutral);
    match name {
        "n" => is_number(1.0),
        "frequency_penalty" | "presence_penalty" | "top_logprobs" | "min_p" => is_number(0.0),
        "logprobs" => *value == json!(false),
        "logit_bias" => *value == json!({}),
        "tools" | "functions" => *value == json!([]),
        "tool_choice" | "function_call" => *value == json!("none") || *value == json!("auto"),
        "response_format" => *value == json!({"type": "text"}),
        "modalities" => *value == json!(["text"]),
        _ => false,
    }
}

/// The error for a field that this server does not use.
pub(crate) fn refused(name: &str, value: &Value) -> ApiError {
    const KNOWN: [&str; 15] = [
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
        "min_p", "modalities", "presence_penalty", "response_format", "tool_choice", "tools",
        "top_logprobs", "verbosity", "web_search_options",
    ];
    if name == "n" {
        let value = vlm_display::shorten(&value.to_string(), 20);
        return ApiError::unsupported(name, format!("this server gives one answer, found {value}"));
    }
    if KNOWN.contains(&name) {
        return ApiError::unsupported(name, "is not supported by this server; leave it out");
    }
    let name = vlm_display::shorten(name, 100);
    ApiError::unsupported(name, "this field is not known to this server; leave it out")
}

/// The largest number of new tokens: `max_tokens` or `max_completion_tokens`, else `limit`.
pub(crate) fn max_tokens(fields: &Map<String, Value>, limit: usize) -> Result<usize, ApiError> {
    let mut found: Option<(&str, usize)> = None;
    for name in ["max_tokens", "max_completion_tokens"] {
        let Some(value) = fields.get(name).filter(|value| !value.is_null()) else { continue };
        let value = count(name, value)?;
        if value == 0 {
            return Err(ApiError::field(name, "it must be at least 1"));
        }
        if value > limit {
            let problem = format!("this server generates at most {limit} tokens, found {value}");
            return Err(ApiError::field(name, problem));
        }
        if let Some((other, number)) = found.filter(|(_, number)| *number != value) {
            let problem = format!("it is {value}, but {other} is {number}; give one of them");
            return Err(ApiError::field(name, problem));
        }
        found = Some((name, value));
    }
    Ok(found.map_or(limit, |(_, value)| value))
}

/// The texts that end an answer.
pub(crate) fn stop_texts(value: &Value) -> Result<Vec<String>, ApiError> {
    let texts = match value {
        Value::Array(texts) => texts.as_slice(),
        text => std::slice::from_ref(text),
    };
    let (most, longest) = MAX_STOP;
    let texts: Option<Vec<String>> = texts.iter().map(|t| t.as_str().map(str::to_owned)).collect();
    texts
        .filter(|texts| {
            texts.len() <= most && texts.iter().all(|t| (1..=longest).contains(&t.chars().count()))
        })
        .ok_or_else(|| {
            let expected = format!("expected a text or up to {most} texts");
            ApiError::field("stop", format!("{expected}, each of 1 to {longest} characters"))
        })
}

/// An object.
pub(crate) fn object<'a>(
    param: &str,
    value: &'a Value,
) -> Result<&'a Map<String, Value>, ApiError> {
    value.as_object().ok_or_else(|| ApiError::field(param, "expected an object"))
}

/// True or false.
pub(crate) fn boolean(param: &str, value: &Value) -> Result<bool, ApiError> {
    value.as_bool().ok_or_else(|| ApiError::field(param, "expected true or false"))
}

/// A number.
pub(crate) fn number(param: &str, value: &Value) -> Result<f64, ApiError> {
    value.as_f64().ok_or_else(|| ApiError::field(param, "expected a number"))
}

/// A whole number that is not negative.
pub(crate) fn count(param: &str, value: &Value) -> Result<usize, ApiError> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| ApiError::field(param, "expected a whole number that is not negative"))
}
