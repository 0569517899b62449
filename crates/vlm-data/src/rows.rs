//! Rows of conversation data and their JSON form. Knows no files and no tokens.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::reject::{Reject, RejectReason};

/// What stands for an image in the text of a turn.
pub const IMAGE_TAG: &str = "<image>";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The one who asks.
    User,
    /// The one who answers: what is learned.
    Assistant,
}

impl Role {
    /// The name that chat templates know.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name {
            "system" => Some(Self::System),
            "user" | "human" => Some(Self::User),
            "assistant" | "gpt" => Some(Self::Assistant),
            _ => None,
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// The text; [`IMAGE_TAG`] stands where an image is shown.
    pub content: String,
}

impl Turn {
    /// A turn of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A conversation with its images, in the order of their [`IMAGE_TAG`]s.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// The turns in order.
    pub turns: Vec<Turn>,
    /// None for a row of text alone.
    pub images: Vec<RowImage>,
}

/// An image of a row, not opened yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowImage {
    /// The name of its file, or what to call it in a message.
    pub name: String,
    /// The encoded picture, where the row itself carries it.
    pub bytes: Option<Bytes>,
    /// BLAKE3 of the encoded picture, where the source knows it without reading the picture.
    pub hash: Option<[u8; 32]>,
}

impl RowImage {
    /// An image in a file called `name`.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), bytes: None, hash: None }
    }
}

impl Row {
    /// Parses one JSON row: `{"conversations": [{"role", "content"}, …], "image": "a.jpg, b.jpg"}`.
    /// `from`/`value` are taken for `role`/`content`, `human`/`gpt` for `user`/`assistant`. A turn
    /// without a role is the assistant's after the user's and the user's otherwise. `image` may be
    /// a string with commas, a list of strings, empty, null or missing.
    ///
    /// # Errors
    /// [`RejectReason::InvalidRow`] for anything else.
    pub fn from_json(text: &str) -> Result<Self, Reject> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| invalid(format!("not JSON: {e}")))?;
        let Value::Object(object) = value else {
            return Err(invalid(format!("expected an object, found {}", kind(&value))));
        };
        let turns = match object.get("conversations") {
            Some(Value::Array(turns)) if turns.is_empty() => {
                return Err(invalid("\"conversations\" is empty"));
            }
            Some(Value::Array(turns)) => parse_turns(turns)?,
            Some(other) => {
                return Err(invalid(format!(
                    "\"conversations\" should be a list of turns, but is {}",
                    kind(other)
                )));
            }
            None => {
                let keys: Vec<_> = object.keys().take(8).map(String::as_str).collect();
                return Err(invalid(format!(
                    "no \"conversations\"; the row has: {}",
                    keys.join(", ")
                )));
            }
        };
        let images = parse_images(object.get("image"))?;
        Ok(Self { turns, images: images.into_iter().map(RowImage::named).collect() })
    }

    /// Parses turns alone: a JSON list of them, or an object that holds it as `conversations`.
    ///
    /// # Errors
    /// [`RejectReason::InvalidRow`].
    pub fn turns_from_json(text: &str) -> Result<Vec<Turn>, Reject> {
        if text.trim_start().starts_with('{') {
            return Self::from_json(text).map(|row| row.turns);
        }
        match serde_json::from_str(text) {
            Ok(Value::Array(turns)) if !turns.is_empty() => parse_turns(&turns),
            Ok(Value::Array(_)) => Err(invalid("\"conversations\" is empty")),
            Ok(other) => Err(invalid(format!(
                "\"conversations\" should be a list of turns, but is {}",
                kind(&other)
            ))),
            Err(e) => Err(invalid(format!("\"conversations\" is not JSON: {e}"))),
        }
    }

    /// How many [`IMAGE_TAG`]s the turns hold.
    pub fn num_image_tags(&self) -> usize {
        self.turns.iter().map(|turn| turn.content.matches(IMAGE_TAG).count()).sum()
    }
}

fn parse_turns(values: &[Value]) -> Result<Vec<Turn>, Reject> {
    let mut turns: Vec<Turn> = Vec::with_capacity(values.len());
    for (index, value) in values.iter().enumerate() {
        let Value::Object(object) = value else {
            return Err(invalid(format!(
                "turn {index} should be an object, but is {}",
                kind(value)
            )));
        };
        let role = match text_field(object, "role", "from", index)? {
            Some(name) => Role::parse(name).ok_or_else(|| {
                invalid(format!(
                    "turn {index} has the role {name:?}; known: system, user, assistant"
                ))
            })?,
            None if turns.last().is_some_and(|turn| turn.role == Role::User) => Role::Assistant,
            None => Role::User,
        };
        let content = text_field(object, "content", "value", index)?
            .ok_or_else(|| invalid(format!("turn {index} has no \"content\"")))?;
        turns.push(Turn::new(role, content));
    }
    Ok(turns)
}

/// The text under `name`, or else under `other`; missing and null are the same.
fn text_field<'a>(
    object: &'a Map<String, Value>,
    name: &str,
    other: &str,
    turn: usize,
) -> Result<Option<&'a str>, Reject> {
    let present = |name| object.get(name).filter(|value| !value.is_null());
    match present(name).or_else(|| present(other)) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(value) => Err(invalid(format!(
            "\"{name}\" of turn {turn} should be text, but is {}",
            kind(value)
        ))),
    }
}

/// `a.jpg, b.jpg` → the two names.
pub(crate) fn split_image_names(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

fn parse_images(value: Option<&Value>) -> Result<Vec<String>, Reject> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(split_image_names(text)),
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| match item {
                // A list needs no commas, so one in a name belongs to the name.
                Value::String(name) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
                other => Err(invalid(format!(
                    "\"image\" should list names, but holds {}",
                    if other.is_string() { "an empty one" } else { kind(other) }
                ))),
            })
            .collect(),
        Some(other) => Err(invalid(format!(
            "\"image\" should be a name, names with commas or a list, but is {}",
            kind(other)
        ))),
    }
}

fn invalid(detail: impl Into<String>) -> Reject {
    Reject::new(RejectReason::InvalidRow, detail)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(text: &str) -> Vec<&'static str> {
        Row::from_json(text).unwrap().turns.iter().map(|turn| turn.role.name()).collect()
    }

    #[test]
    fn turns_without_roles_alternate_and_roles_are_honoured() {
        let row = r#"{"conversations":[{"content":"q"},{"content":"a"},{"content":"q"}]}"#;
        assert_eq!(roles(row), ["user", "assistant", "user"]);
        let row = r#"{"conversations":[{"role":"system","content":"s"},{"content":"q"},
                      {"content":"a"}]}"#;
        assert_eq!(roles(row), ["system", "user", "assistant"]);
        let row = r#"{"conversations":[{"role":"assistant","content":"a"},
                      {"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#;
        assert_eq!(roles(row), ["assistant", "user", "assistant"]);
    }

    #[test]
    fn images_come_from_commas_a_list_or_nothing() {
        let images = |image: &str| {
            let row = format!(r#"{{"conversations":[{{"content":"q"}}]{image}}}"#);
            let images = Row::from_json(&row).unwrap().images;
            images.into_iter().map(|image| image.name).collect::<Vec<_>>()
        };
        assert_eq!(images(r#","image":"a.jpg, b/c.png""#), ["a.jpg", "b/c.png"]);
        assert_eq!(images(r#","image":["a, b.jpg","c.jpg"]"#), ["a, b.jpg", "c.jpg"]);
        for nothing in ["", r#","image":"""#, r#","image":null"#, r#","image":[]"#] {
            assert!(images(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn what_is_no_row_is_rejected_with_what_was_found() {
        for (row, expected) in [
            ("<html>", "not JSON"),
            ("[1]", "found a list"),
            ("{\"caption\":\"x\"}", "the row has: caption"),
            (r#"{"conversations":[]}"#, "empty"),
            (r#"{"conversations":"x"}"#, "is a string"),
            (r#"{"conversations":["x"]}"#, "turn 0"),
            (r#"{"conversations":[{"role":"user"}]}"#, "no \"content\""),
            (r#"{"conversations":[{"role":"tool","content":""}]}"#, "\"tool\""),
            (r#"{"conversations":[{"content":3}]}"#, "a number"),
            (r#"{"conversations":[{"content":"q"}],"image":7}"#, "a number"),
            (r#"{"conversations":[{"content":"q"}],"image":[""]}"#, "an empty one"),
        ] {
            let reject = Row::from_json(row).unwrap_err();
            assert_eq!(reject.reason, RejectReason::InvalidRow, "{row}");
            assert!(reject.detail.contains(expected), "{row}: {}", reject.detail);
        }
    }
}
