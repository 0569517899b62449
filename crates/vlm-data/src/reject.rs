//! Rejected rows, and the reasons for which a row is rejected.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

/// Reasons for which a row is not trained on. Their serialized names (kebab-case) are used in
/// `rejected.jsonl` and in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectReason {
    /// The line is not JSON, or not a row: it has no turns, a turn without text, or an unknown
    /// role.
    InvalidRow,
    /// The image file does not exist.
    MissingImage,
    /// The image's name leads out of the images folder.
    ImageOutsideRoot,
    /// The file exists, but cannot be decoded as an image.
    UnreadableImage,
    /// The image is larger than the limits of [`crate::ImageLimits`].
    ImageTooLarge,
    /// The row has more images than `<image>` tags in its turns.
    ImageWithoutPlaceholder,
    /// The turns have more `<image>` tags than the row has images.
    PlaceholderWithoutImage,
    /// The text itself contains the placeholder of an image in the prompt.
    PlaceholderInText,
    /// The row has video or audio.
    UnsupportedMedia,
    /// The row has images under several keys, or under a key that is not known.
    AmbiguousImages,
    /// Every turn has too low a rating.
    RatingTooLow,
    /// The length limit falls within or before an image's tokens.
    CutThroughImage,
    /// No token within the length limit is learned.
    NoSupervisedToken,
    /// The chat template raises an error for the conversation, or rewrites or drops one of its
    /// turns.
    TemplateRefused,
    /// The tokenizer cannot encode the prompt.
    TokenizerFailed,
    /// The feature cache does not have the image.
    NotInFeatureCache,
}

impl RejectReason {
    /// The name in kebab-case.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidRow => "invalid-row",
            Self::MissingImage => "missing-image",
            Self::ImageOutsideRoot => "image-outside-root",
            Self::UnreadableImage => "unreadable-image",
            Self::ImageTooLarge => "image-too-large",
            Self::ImageWithoutPlaceholder => "image-without-placeholder",
            Self::PlaceholderWithoutImage => "placeholder-without-image",
            Self::PlaceholderInText => "placeholder-in-text",
            Self::UnsupportedMedia => "unsupported-media",
            Self::AmbiguousImages => "ambiguous-images",
            Self::RatingTooLow => "rating-too-low",
            Self::CutThroughImage => "cut-through-image",
            Self::NoSupervisedToken => "no-supervised-token",
            Self::TemplateRefused => "template-refused",
            Self::TokenizerFailed => "tokenizer-failed",
            Self::NotInFeatureCache => "not-in-feature-cache",
        }
    }
}

impl std::fmt::Display for RejectReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a row cannot be trained on; the caller knows which row it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Reject {
    /// Kind of the reason.
    pub reason: RejectReason,
    /// What was expected and what was found, for a message.
    pub detail: String,
}

impl Reject {
    /// A reason with its details.
    pub fn new(reason: RejectReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// A row that is not well-formed.
    pub(crate) fn invalid_row(detail: impl Into<String>) -> Self {
        Self::new(RejectReason::InvalidRow, detail)
    }

    /// Images that the row gives in two ways, or that cannot be told from other values.
    pub(crate) fn ambiguous_images(detail: impl Into<String>) -> Self {
        Self::new(RejectReason::AmbiguousImages, detail)
    }

    /// An image that is not where the row says.
    pub(crate) fn missing_image(detail: impl Into<String>) -> Self {
        Self::new(RejectReason::MissingImage, detail)
    }

    /// An image that cannot be read or decoded.
    pub(crate) fn unreadable_image(detail: impl Into<String>) -> Self {
        Self::new(RejectReason::UnreadableImage, detail)
    }

    /// Something of `what` that has more `bytes` than the `limit`.
    pub(crate) fn image_too_large(what: &str, bytes: u64, limit: u64) -> Self {
        let detail = format!("{what} has {bytes} bytes; the limit is {limit}");
        Self::new(RejectReason::ImageTooLarge, detail)
    }

    /// More placeholders than images.
    pub(crate) fn placeholder_without_image(detail: impl Into<String>) -> Self {
        Self::new(RejectReason::PlaceholderWithoutImage, detail)
    }

    /// Video or audio; `found` is a sentence that says where.
    pub(crate) fn unsupported_media(found: impl Display) -> Self {
        let detail = format!("{found}; only images and text are supported");
        Self::new(RejectReason::UnsupportedMedia, detail)
    }

    /// A row whose index is not below `num_rows`.
    pub(crate) fn no_such_row(index: usize, num_rows: usize) -> Self {
        Self::invalid_row(format!("row {index} does not exist; there are {num_rows} rows"))
    }
}

/// A rejected row; one line of `rejected.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Index of the row in the source, from 0.
    pub row: usize,
    /// Location of the row for messages: `captions.jsonl:17`.
    pub location: String,
    /// The kind of reason.
    pub reason: RejectReason,
    /// What was expected and what was found.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serialized_reason_is_its_name() {
        for reason in [
            RejectReason::InvalidRow,
            RejectReason::MissingImage,
            RejectReason::ImageOutsideRoot,
            RejectReason::UnreadableImage,
            RejectReason::ImageTooLarge,
            RejectReason::ImageWithoutPlaceholder,
            RejectReason::PlaceholderWithoutImage,
            RejectReason::PlaceholderInText,
            RejectReason::UnsupportedMedia,
            RejectReason::AmbiguousImages,
            RejectReason::RatingTooLow,
            RejectReason::CutThroughImage,
            RejectReason::NoSupervisedToken,
            RejectReason::TemplateRefused,
            RejectReason::TokenizerFailed,
            RejectReason::NotInFeatureCache,
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
    }
}
