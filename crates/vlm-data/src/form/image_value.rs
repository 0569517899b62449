//! A value that is an image, or several: names, data URIs, base64, bytes, and the objects in which
//! Hugging Face's `datasets` and the OpenAI interface put them.

use base64::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;

use super::context::{FormContext, invalid};
use crate::record::{Field, Record, shown};
use crate::reject::{Reject, RejectReason};
use crate::rows::RowImage;

/// Where an object has the image's bytes.
const BYTES_KEYS: [&str; 4] = ["bytes", "data", "base64", "b64"];
/// Where an object has the image's name or address.
const NAME_KEYS: [&str; 9] =
    ["path", "file_name", "filename", "name", "image", "image_path", "url", "image_url", "src"];
/// Text that is shorter is a name, whatever its characters.
const MIN_BASE64_CHARS: usize = 100;

/// The images of `value`, which stands under `key`: one, several in a list, or names with commas.
/// A name with commas is one name where there is such a file.
///
/// # Errors
/// What is no image.
pub(super) fn images(
    value: &Field,
    key: &str,
    context: &FormContext<'_>,
) -> Result<Vec<RowImage>, Reject> {
    match value {
        Field::Null => Ok(Vec::new()),
        Field::Text(text) if text.trim().is_empty() => Ok(Vec::new()),
        Field::Text(text) => names(text.trim(), key, context),
        Field::List(list) => list
            .iter()
            .enumerate()
            .map(|(k, item)| match item {
                Field::Text(text) if text.trim().is_empty() => {
                    Err(invalid(format!("\"{key}\" should list images, but holds an empty one")))
                }
                Field::Null | Field::Bool(_) | Field::Number(_) | Field::List(_) => {
                    Err(invalid(format!("\"{key}\" should list images, but holds {}", item.kind())))
                }
                item => single(item, &format!("{key}[{k}]"), context),
            })
            .collect(),
        value if value.is_empty() => Ok(Vec::new()),
        value => Ok(vec![single(value, key, context)?]),
    }
}

/// The image that `value` is.
///
/// # Errors
/// What is no image.
pub(super) fn single(
    value: &Field,
    key: &str,
    context: &FormContext<'_>,
) -> Result<RowImage, Reject> {
    match value {
        Field::Text(text) => of_text(text.trim(), key, context),
        Field::Bytes(bytes) => Ok(embedded(key, bytes.clone())),
        Field::Object(record) => of_object(record, key, context),
        other => Err(invalid(format!(
            "\"{key}\" should be an image's name, its bytes, names with commas or a list, but is {}",
            other.kind()
        ))),
    }
}

fn of_object(record: &Record, key: &str, context: &FormContext<'_>) -> Result<RowImage, Reject> {
    let name = match record.first_of(&NAME_KEYS) {
        Some((_, Field::Text(name))) if !name.trim().is_empty() => Some(name.trim()),
        // An image within an image, as `{"image_url": {"url": …}}` nested once more.
        Some((inner, value @ Field::Object(_))) => return single(value, inner, context),
        _ => None,
    };
    match record.first_of(&BYTES_KEYS) {
        Some((_, Field::Bytes(bytes))) if !bytes.is_empty() => {
            return Ok(embedded(name.unwrap_or(key), bytes.clone()));
        }
        Some((inner, Field::Text(text))) if !text.trim().is_empty() => {
            let text = text.trim();
            if let Some(data) = text.strip_prefix("data:") {
                return of_data_uri(data, key);
            }
            let bytes = decode(text).ok_or_else(|| {
                unreadable(format!("\"{inner}\" of \"{key}\" is not base64: {}", shown(text)))
            })?;
            return Ok(embedded(name.unwrap_or(key), bytes));
        }
        _ => {}
    }
    match name {
        Some(name) => of_text(name, key, context),
        None => Err(invalid(format!(
            "\"{key}\" is an object without an image; expected \"bytes\", \"path\" or \"url\", \
             found: {}",
            record.keys()
        ))),
    }
}

/// One name, data URI or base64 text.
fn of_text(text: &str, key: &str, context: &FormContext<'_>) -> Result<RowImage, Reject> {
    if let Some(data) = text.strip_prefix("data:") {
        return of_data_uri(data, key);
    }
    if let Some(bytes) = base64_image(text) {
        return Ok(embedded(key, bytes));
    }
    if text.is_empty() {
        return Err(invalid(format!("\"{key}\" is an empty name")));
    }
    let limit = context.options.max_image_bytes;
    if text.len() as u64 > limit {
        return Err(Reject::new(
            RejectReason::ImageTooLarge,
            format!("\"{key}\" has {} bytes; at most {limit} are read", text.len()),
        ));
    }
    Ok(RowImage::named(text))
}

fn names(text: &str, key: &str, context: &FormContext<'_>) -> Result<Vec<RowImage>, Reject> {
    if text.starts_with('[') && text.ends_with(']') {
        if let Ok(list @ Field::List(_)) = Field::from_json(text) {
            return images(&list, key, context);
        }
        if text.starts_with("['") {
            return Err(invalid(format!(
                "\"{key}\" is a list in Python's notation ({}): write it with json.dumps",
                shown(text)
            )));
        }
    }
    let is_one = !text.contains(',')
        || text.starts_with("data:")
        || text.contains("://")
        || context.has_image(text);
    if is_one {
        return Ok(vec![of_text(text, key, context)?]);
    }
    let parts = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    parts.map(|name| of_text(name, key, context)).collect()
}

/// `image/jpeg;base64,…`, without the `data:` in front.
fn of_data_uri(data: &str, key: &str) -> Result<RowImage, Reject> {
    let (header, content) = data.split_once(',').unwrap_or((data, ""));
    let is_base64 = header.rsplit(';').any(|word| word.eq_ignore_ascii_case("base64"));
    let bytes = if is_base64 { decode(content) } else { None };
    let bytes = bytes.filter(|bytes| !bytes.is_empty()).ok_or_else(|| {
        unreadable(format!("\"{key}\" should be data:image/…;base64,… but is data:{}", shown(data)))
    })?;
    let kind = header.split(';').next().unwrap_or_default();
    Ok(embedded(&format!("{key} ({kind}, {} bytes)", bytes.len()), bytes))
}

/// The image that long text is without a `data:` in front, where its first bytes are an image's.
fn base64_image(text: &str) -> Option<Bytes> {
    if text.len() < MIN_BASE64_CHARS {
        return None;
    }
    // Whether it is one shows in its beginning, before all of it is decoded.
    let start = decode(text.get(..64)?)?;
    image::guess_format(&start).ok()?;
    decode(text)
}

fn decode(text: &str) -> Option<Bytes> {
    let is_plain = !text.bytes().any(|byte| byte.is_ascii_whitespace());
    let compact: std::borrow::Cow<'_, str> = if is_plain {
        text.into()
    } else {
        text.split_ascii_whitespace().collect::<String>().into()
    };
    let compact = compact.trim_end_matches('=');
    let alphabet = if compact.contains(['-', '_']) { URL_SAFE_NO_PAD } else { STANDARD_NO_PAD };
    let lenient = alphabet.decode_allow_trailing_bits(true);
    base64::decode_config(compact, lenient).ok().map(Bytes::from)
}

fn embedded(name: &str, bytes: Bytes) -> RowImage {
    RowImage { name: name.to_owned(), bytes: Some(bytes), hash: None }
}

fn unreadable(detail: String) -> Reject {
    Reject::new(RejectReason::UnreadableImage, detail)
}
