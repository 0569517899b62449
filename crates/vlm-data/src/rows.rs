//! Rows of conversation data and their JSON form. Knows no files and no tokens.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::form::{self, FormContext};
use crate::record::Field;
use crate::reject::{Reject, RejectReason};
use crate::row_options::RowOptions;

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
    /// A program that the assistant called, with what it returned.
    Tool,
}

impl Role {
    /// The name that chat templates know.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
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
    /// Parses one row of JSON in any of the forms that docs/data.md lists, with the default options:
    /// `{"conversations": [{"role", "content"}, …], "image": "a.jpg, b.jpg"}`, `messages`, a question
    /// and an answer, a caption. Names with commas are split at them, since no folder is known in
    /// which a file of the whole name could be.
    ///
    /// # Errors
    /// Why the row cannot be used, see [`RejectReason`].
    pub fn from_json(text: &str) -> Result<Self, Reject> {
        let options = RowOptions::default();
        let record = Field::from_json(text).and_then(Field::into_record).map_err(invalid)?;
        form::row(&record, &FormContext { options: &options, root: None })
    }

    /// Parses turns alone: a JSON list of them, or an object that holds it as `conversations`.
    ///
    /// # Errors
    /// [`RejectReason::InvalidRow`].
    pub fn turns_from_json(text: &str) -> Result<Vec<Turn>, Reject> {
        let options = RowOptions::default();
        let context = FormContext { options: &options, root: None };
        match Field::from_json(text) {
            Ok(list @ Field::List(_)) => form::turns_alone(&list, &context),
            other => {
                let record = other.and_then(Field::into_record).map_err(invalid)?;
                Ok(form::row(&record, &context)?.turns)
            }
        }
    }

    /// How many [`IMAGE_TAG`]s stand for images.
    pub fn num_image_tags(&self) -> usize {
        num_image_tags(&self.turns)
    }
}

/// How many [`IMAGE_TAG`]s of `turns` stand for images; see [`shows_images`].
pub fn num_image_tags(turns: &[Turn]) -> usize {
    (0..turns.len())
        .filter(|&k| shows_images(turns, k))
        .map(|k| turns[k].content.matches(IMAGE_TAG).count())
        .sum()
}

/// Whether an [`IMAGE_TAG`] in turn `index` stands for an image. In an answer it is text, as in a
/// document that the assistant transcribes, unless nobody has asked anything yet.
pub fn shows_images(turns: &[Turn], index: usize) -> bool {
    turns[index].role != Role::Assistant
        || !turns[..index].iter().any(|turn| turn.role == Role::User)
}

fn invalid(detail: impl Into<String>) -> Reject {
    Reject::new(RejectReason::InvalidRow, detail)
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
            ("{\"caption\":\"x\"}", "the row has: caption (a caption without an image)"),
            ("{\"image\":\"x.jpg\"}", "an image without a text"),
            ("{\"label\":3}", "the row has: label"),
            ("{'conversations': []}", "json.dumps"),
            (r#"{"conversations":[]}"#, "empty"),
            (r#"{"conversations":"x"}"#, "is a string"),
            (r#"{"conversations":["x"]}"#, "turn 0"),
            (r#"{"conversations":[{"role":"user"}]}"#, "no \"content\""),
            (r#"{"conversations":[{"role":"juror","content":""}]}"#, "\"juror\""),
            (r#"{"conversations":[{"content":true}]}"#, "a boolean"),
            (r#"{"conversations":[{"role":"user","content":null}]}"#, "is null"),
            (r#"{"conversations":[{"content":"q"}],"image":7}"#, "a number"),
            (r#"{"conversations":[{"content":"q"}],"image":[""]}"#, "an empty one"),
        ] {
            let reject = Row::from_json(row).unwrap_err();
            assert_eq!(reject.reason, RejectReason::InvalidRow, "{row}");
            assert!(reject.detail.contains(expected), "{row}: {}", reject.detail);
        }
    }
}
