//! Rows of conversations with images, and their JSON form. This module knows neither files nor
//! tokens.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The tag that stands for an image in the text of a turn.
pub const IMAGE_TAG: &str = "<image>";

/// The speaker of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The user, who asks.
    User,
    /// The assistant, whose answers are learned.
    Assistant,
    /// The result of a program that the assistant called.
    Tool,
}

impl Role {
    /// The name in chat templates.
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
    /// The speaker.
    pub role: Role,
    /// The text, with an [`IMAGE_TAG`] at the position of each image.
    pub content: String,
    /// The functions that the assistant may call: a list of objects, which the first turn of a
    /// conversation can have. The chat template writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
}

impl Turn {
    /// A turn of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tools: None }
    }
}

/// A conversation with its images, in the order of their [`IMAGE_TAG`]s.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// The turns in order.
    pub turns: Vec<Turn>,
    /// The images; none in a row of text alone.
    pub images: Vec<RowImage>,
}

/// An image of a row, not opened yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowImage {
    /// The name of its file, or a name for messages.
    pub name: String,
    /// The encoded image, if the row itself has it.
    pub bytes: Option<Bytes>,
    /// BLAKE3 of the encoded image, if the source knows it without reading the image.
    pub hash: Option<[u8; 32]>,
}

impl RowImage {
    /// An image in the file called `name`.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), bytes: None, hash: None }
    }
}

impl Row {
    /// Number of [`IMAGE_TAG`]s that stand for images.
    pub fn num_image_tags(&self) -> usize {
        num_image_tags(&self.turns)
    }
}

/// Number of [`IMAGE_TAG`]s in `turns` that stand for images. In an answer to a user turn the tag is text.
pub fn num_image_tags(turns: &[Turn]) -> usize {
    (0..turns.len())
        .filter(|&k| shows_images(turns, k))
        .map(|k| turns[k].content.matches(IMAGE_TAG).count())
        .sum()
}

/// Whether an [`IMAGE_TAG`] in turn `index` stands for an image. In an answer it is text, for
/// example in a document that the assistant transcribes, unless no user turn comes before it.
pub fn shows_images(turns: &[Turn], index: usize) -> bool {
    turns[index].role != Role::Assistant
        || !turns[..index].iter().any(|turn| turn.role == Role::User)
}
