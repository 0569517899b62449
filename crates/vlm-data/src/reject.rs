//! Why a row is set aside, and which.

use serde::{Deserialize, Serialize};

/// The kinds of reasons for which a row is not trained on. The serialized names (kebab-case) are
/// what `rejected.jsonl` and the messages show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectReason {
    /// The line is not JSON, or not a row: no turns, no text in one, a role that nobody knows.
    InvalidRow,
    /// The image is not where the row says.
    MissingImage,
    /// The image's name leads out of the images folder.
    ImageOutsideRoot,
    /// There is a file, but no picture can be had from it.
    UnreadableImage,
    /// The picture is larger than the limits of [`crate::ImageLimits`].
    ImageTooLarge,
    /// The row has more images than `<image>` in its turns.
    ImageWithoutPlaceholder,
    /// The turns have more `<image>` than the row has images.
    PlaceholderWithoutImage,
    /// The text itself spells what stands for an image in the prompt.
    PlaceholderInText,
    /// The row has a video or a sound.
    UnsupportedMedia,
    /// Images at several places of the row, or where no reader knows them.
    AmbiguousImages,
    /// Every turn is rated lower than wanted.
    RatingTooLow,
    /// The length limit falls within an image's tokens, or before them.
    CutThroughImage,
    /// Nothing to learn within the length limit.
    NoSupervisedToken,
    /// The chat template refuses the conversation, or rewrites or drops one of its turns.
    TemplateRefused,
    /// The tokenizer cannot encode the prompt.
    TokenizerFailed,
    /// The feature cache was made without this image.
    NotInFeatureCache,
}

impl RejectReason {
    /// The kebab-case name.
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

/// Why something cannot be trained on; which row it was, the caller knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Reject {
    /// The kind.
    pub reason: RejectReason,
    /// What was expected and found, for a person.
    pub detail: String,
}

impl Reject {
    /// A reason with its particulars.
    pub fn new(reason: RejectReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// A row that was set aside; one line of `rejected.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Index in the source, from 0.
    pub row: usize,
    /// Where a person finds it: `captions.jsonl:17`.
    pub location: String,
    /// The kind of reason.
    pub reason: RejectReason,
    /// What was expected and found.
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
