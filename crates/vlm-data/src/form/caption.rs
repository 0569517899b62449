//! Rows of an image and a caption: the `image` and `caption` of BLIP, the `file_name` and `text` of
//! an image folder, the output of img2dataset.

use super::context::FormContext;
use super::parts::{self, PartImages};
use crate::record::{Field, Record};
use crate::reject::Reject;
use crate::rows::{Role, Turn};

/// Keys of a caption, the likeliest first.
pub(super) const CAPTION_KEYS: [&str; 16] = [
    "caption", "captions", "text", "txt", "description", "sentence", "sentences", "sentences_raw",
    "raw", "alt_text", "alt", "recaption", "long_caption", "short_caption", "detailed_caption",
    "title",
];

/// The caption of `record` with its key.
pub(super) fn of(record: &Record) -> Option<(&str, &Field)> {
    record.first_of(&CAPTION_KEYS).filter(|(_, value)| !matches!(value, Field::Object(_)))
}

/// The turns of a row whose caption is `caption`: the user shows the image and asks the caption
/// question, and the caption is the answer. Of several captions the first is used.
///
/// # Errors
/// A caption that is not text.
pub(super) fn turns(
    (key, caption): (&str, &Field),
    context: &FormContext<'_>,
) -> Result<Vec<Turn>, Reject> {
    let caption = match caption {
        Field::List(captions) => captions.first().unwrap_or(caption),
        other => other,
    };
    let text = parts::text_of(caption, &format!("\"{key}\""), context, &mut PartImages::new())?;
    let question = context.options.caption_question.as_str();
    Ok(vec![Turn::new(Role::User, question), Turn::new(Role::Assistant, text)])
}
