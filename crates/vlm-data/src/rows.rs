//! Rows of conversation data and their JSON form. Knows no files and no tokens.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

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
