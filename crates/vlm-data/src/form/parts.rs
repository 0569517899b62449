//! Reads the content of a turn: text, a number, or OpenAI's list of parts.

use super::context::FormContext;
use super::image_value;
use crate::record::{Field, Record, shown};
use crate::reject::Reject;
use crate::rows::{IMAGE_TAG, RowImage};

/// Values of `type`, by kind of part.
const TEXT_TYPES: [&str; 3] = ["text", "input_text", "output_text"];
const IMAGE_TYPES: [&str; 6] =
    ["image", "image_url", "input_image", "img", "picture", "image_file"];
const OTHER_MEDIA: [&str; 8] =
    ["video", "video_url", "input_video", "audio", "audio_url", "input_audio", "file", "document"];
/// Keys under which a text part has its text.
const TEXT_KEYS: [&str; 3] = ["text", "content", "value"];
/// Keys under which an image part has its image.
const IMAGE_KEYS: [&str; 12] = [
    "image", "image_url", "url", "path", "image_path", "file_name", "source", "bytes", "data",
    "base64", "image_file", "img",
];

/// The images that parts carry, in the order of the turns; `None` for a part that only marks the
/// position of one of the row's images.
pub(super) type PartImages = Vec<Option<RowImage>>;

/// The text of `content`, with [`IMAGE_TAG`] for each image part. Parts are joined without a
/// separator. A number is written as in JSON.
///
/// # Errors
/// Null, a boolean, and parts that are neither text nor image.
pub(super) fn text_of(
    content: &Field,
    what: &str,
    context: &FormContext<'_>,
    images: &mut PartImages,
) -> Result<String, Reject> {
    match content {
        Field::Text(text) => Ok(text.clone()),
        Field::Number(number) => Ok(number.to_string()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Reject::invalid_row(format!("{what} is not UTF-8"))),
        },
        Field::List(parts) => {
            let mut text = String::new();
            for (k, part) in parts.iter().enumerate() {
                text.push_str(&part_text(part, &format!("part {k} of {what}"), context, images)?);
            }
            Ok(text)
        }
        Field::Object(_) => part_text(content, what, context, images),
        Field::Null | Field::Bool(_) => {
            Err(Reject::invalid_row(format!("{what} should be text, but is {}", content.kind())))
        }
    }
}

fn part_text(
    part: &Field,
    what: &str,
    context: &FormContext<'_>,
    images: &mut PartImages,
) -> Result<String, Reject> {
    let record = match part {
        Field::Text(text) => return Ok(text.clone()),
        Field::Object(record) => record,
        other => {
            return Err(Reject::invalid_row(format!(
                "{what} should be text or an object with \"type\", but is {}",
                other.kind()
            )));
        }
    };
    let kind = match record.get("type") {
        Field::Text(kind) => kind.to_lowercase(),
        _ => kind_by_keys(record),
    };
    if TEXT_TYPES.contains(&kind.as_str()) {
        return match record.first_of(&TEXT_KEYS) {
            Some((_, Field::Text(text))) => Ok(text.clone()),
            Some((_, Field::Number(number))) => Ok(number.to_string()),
            Some((key, other)) => Err(Reject::invalid_row(format!(
                "\"{key}\" of {what} should be text, but is {}",
                other.kind()
            ))),
            None => Err(Reject::invalid_row(format!("{what} is a text part without \"text\""))),
        };
    }
    if IMAGE_TYPES.contains(&kind.as_str()) {
        images.push(match record.first_of(&IMAGE_KEYS) {
            Some((key, value)) if !value.is_empty() => {
                Some(image_value::single(value, key, context)?)
            }
            _ => None,
        });
        return Ok(IMAGE_TAG.to_owned());
    }
    if OTHER_MEDIA.contains(&kind.as_str()) {
        return Err(Reject::unsupported_media(format!("{what} is of the type \"{kind}\"")));
    }
    Err(Reject::invalid_row(format!(
        "{what} is of the type {:?}; expected one of: {}, {}; its keys: {}",
        shown(&kind),
        TEXT_TYPES.join(", "),
        IMAGE_TYPES.join(", "),
        record.keys()
    )))
}

/// The kind of a part that has no `type`, as in Qwen's and Gemini's data.
fn kind_by_keys(record: &Record) -> String {
    let has = |keys: &[&str]| record.first_of(keys).is_some_and(|(_, value)| !value.is_null());
    let kind = if has(&["text"]) {
        "text"
    } else if has(&["image", "image_url", "image_path", "img"]) {
        "image"
    } else if has(&["video", "video_url"]) {
        "video"
    } else if has(&["audio", "audio_url"]) {
        "audio"
    } else {
        ""
    };
    kind.to_owned()
}
