//! Values that are one image or several: names, data URIs, base64, bytes, and the objects in which
//! Hugging Face's `datasets` and the OpenAI API put them.

use base64::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;

use super::context::FormContext;
use crate::record::{Field, Record, shown};
use crate::reject::Reject;
use crate::rows::RowImage;

/// Keys of an image object that hold the bytes.
const BYTES_KEYS: [&str; 4] = ["bytes", "data", "base64", "b64"];
/// Keys of an image object that hold the name or address.
const NAME_KEYS: [&str; 9] =
    ["path", "file_name", "filename", "name", "image", "image_path", "url", "image_url", "src"];
/// Shorter text is always a name.
const MIN_BASE64_CHARS: usize = 100;

/// The images of `value`, which was found under `key`: one image, a list of images, or names
/// separated by commas. A name that contains commas is one name if there is such a file.
///
/// # Errors
/// A value that is not an image.
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
                Field::Text(text) if text.trim().is_empty() => Err(Reject::invalid_row(format!(
                    "\"{key}\" should list images, but has an empty name"
                ))),
                Field::Null | Field::Bool(_) | Field::Number(_) | Field::List(_) => {
                    Err(Reject::invalid_row(format!(
                        "\"{key}\" should list images, but has {}",
                        item.kind()
                    )))
                }
                item => single(item, &format!("{key}[{k}]"), context),
            })
            .collect(),
        value if value.is_empty() => Ok(Vec::new()),
        value => Ok(vec![single(value, key, context)?]),
    }
}

/// The image in `value`.
///
/// # Errors
/// A value that is not an image.
pub(super) fn single(
    value: &Field,
    key: &str,
    context: &FormContext<'_>,
) -> Result<RowImage, Reject> {
    match value {
        Field::Text(text) => of_text(text.trim(), key, context),
        Field::Bytes(bytes) => Ok(embedded(key, bytes.clone())),
        Field::Object(record) => of_object(record, key, context),
        other => Err(Reject::invalid_row(format!(
            "\"{key}\" should be the name or bytes of an image, names separated by commas, or a \
             list, but is {}",
            other.kind()
        ))),
    }
}

fn of_object(record: &Record, key: &str, context: &FormContext<'_>) -> Result<RowImage, Reject> {
    let name = match record.first_of(&NAME_KEYS) {
        Some((_, Field::Text(name))) if !name.trim().is_empty() => Some(name.trim()),
        // An image object within an image object, such as `{"image_url": {"url": …}}`.
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
                Reject::unreadable_image(format!(
                    "\"{inner}\" of \"{key}\" is not base64: {}",
                    shown(text)
                ))
            })?;
            return Ok(embedded(name.unwrap_or(key), bytes));
        }
        _ => {}
    }
    match name {
        Some(name) => of_text(name, key, context),
        None => Err(Reject::invalid_row(format!(
            "\"{key}\" is an object without an image; expected \"bytes\", \"path\" or \"url\", \
             found: {}",
            record.keys()
        ))),
    }
}

/// The image of one name, data URI or base64 text.
fn of_text(text: &str, key: &str, context: &FormContext<'_>) -> Result<RowImage, Reject> {
    if let Some(data) = text.strip_prefix("data:") {
        return of_data_uri(data, key);
    }
    if let Some(bytes) = base64_image(text) {
        return Ok(embedded(key, bytes));
    }
    if text.is_empty() {
        return Err(Reject::invalid_row(format!("\"{key}\" should name an image, but is empty")));
    }
    let limit = context.options.max_image_bytes;
    if text.len() as u64 > limit {
        return Err(Reject::image_too_large(&format!("\"{key}\""), text.len() as u64, limit));
    }
    Ok(RowImage::named(text))
}

fn names(text: &str, key: &str, context: &FormContext<'_>) -> Result<Vec<RowImage>, Reject> {
    if text.starts_with('[') && text.ends_with(']') {
        if let Ok(list @ Field::List(_)) = Field::from_json(text) {
            return images(&list, key, context);
        }
        if text.starts_with("['") {
            return Err(Reject::invalid_row(format!(
                "\"{key}\" is a list in Python syntax ({}): write it with json.dumps",
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

/// The image of a data URI: `image/jpeg;base64,…`, without the leading `data:`.
fn of_data_uri(data: &str, key: &str) -> Result<RowImage, Reject> {
    let (header, content) = data.split_once(',').unwrap_or((data, ""));
    let is_base64 = header.rsplit(';').any(|word| word.eq_ignore_ascii_case("base64"));
    let bytes = if is_base64 { decode(content) } else { None };
    let bytes = bytes.filter(|bytes| !bytes.is_empty()).ok_or_else(|| {
        Reject::unreadable_image(format!(
            "\"{key}\" should be data:image/…;base64,… but is data:{}",
            shown(data)
        ))
    })?;
    let kind = header.split(';').next().unwrap_or_default();
    Ok(embedded(&format!("{key} ({kind}, {} bytes)", bytes.len()), bytes))
}

/// The image of long text without a leading `data:`, if its first bytes are those of an image.
fn base64_image(text: &str) -> Option<Bytes> {
    if text.len() < MIN_BASE64_CHARS {
        return None;
    }
    // The first bytes tell whether it is an image, before all of it is decoded.
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
