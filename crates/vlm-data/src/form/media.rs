//! Finds the images that a row declares besides its text, under any key, and declared media that
//! are not trained on. A declared image is either used or the row is rejected; it is never ignored.

use vlm_display::count;

use super::context::FormContext;
use super::image_value;
use super::keys::{self, KeyKind};
use crate::record::{Field, Record, is_key, shown};
use crate::reject::Reject;
use crate::rows::RowImage;

/// Keys that hold an image if their value is one and no other key has any.
pub(super) const PLAIN_KEYS: [&str; 6] = ["path", "file", "name", "src", "uri", "url"];

/// One key with its images.
type Declared<'a> = (&'a str, Vec<RowImage>);

/// The images of `record` in order. `text_keys` are the keys that the row's text was read from.
///
/// # Errors
/// Video or audio; images under keys that contradict each other or that are not known; values that
/// are not images.
pub(super) fn images(
    record: &Record,
    text_keys: &[&str],
    context: &FormContext<'_>,
) -> Result<Vec<RowImage>, Reject> {
    let chosen = &context.options.image_keys;
    let mut declared: Vec<Declared<'_>> = Vec::new();
    let mut unknown: Vec<(&str, &Field)> = Vec::new();
    for (key, value) in &record.0 {
        if value.is_empty() || text_keys.contains(&key.as_str()) {
            continue;
        }
        let kind = keys::kind_of(key);
        let is_chosen = chosen.iter().any(|chosen| chosen == key);
        let is_image = chosen.is_empty() && kind == KeyKind::Image && may_be_image(key, value);
        if is_chosen || is_image {
            let images = image_value::images(value, key, context)?;
            if !images.is_empty() {
                declared.push((key, images));
            }
        } else if kind == KeyKind::OtherMedia && !is_false(value) {
            return Err(unsupported(key, value));
        } else if chosen.is_empty() && keys::looks_like_image(value) {
            unknown.push((key, value));
        }
    }
    // The name is under a key that may hold anything, and the row has no other image.
    if let ([], [(key, value)]) = (&declared[..], &unknown[..])
        && PLAIN_KEYS.iter().any(|plain| is_key(key, plain))
    {
        return image_value::images(value, key, context);
    }
    let images = combine(declared)?;
    let is_unused = |(_, value): &&(&str, &Field)| !is_known(value, &images);
    match unknown.iter().find(is_unused) {
        Some((key, value)) => Err(Reject::ambiguous_images(format!(
            "the key {key:?} is not known, but its value looks like an image ({}); rename the \
                 key to \"image\", or remove it",
            example(value)
        ))),
        None => Ok(images),
    }
}

/// A number is not an image. Under `image` itself it is an error, under other names it is a count.
fn may_be_image(key: &str, value: &Field) -> bool {
    match value {
        Field::Bool(_) | Field::Number(_) => is_key(key, "image") || is_key(key, "images"),
        _ => true,
    }
}

fn is_false(value: &Field) -> bool {
    matches!(value, Field::Bool(false))
}

/// Joins the images of several keys into those of one row.
fn combine(mut declared: Vec<Declared<'_>>) -> Result<Vec<RowImage>, Reject> {
    // If one key has local images, addresses under other keys only tell where these came from.
    let has_local = declared.iter().any(|(_, images)| !images.iter().any(is_url));
    if has_local {
        declared.retain(|(_, images)| !images.iter().all(is_url));
    }
    if declared.len() <= 1 {
        return Ok(declared.pop().map(|(_, images)| images).unwrap_or_default());
    }
    if let Some(numbered) = numbered(&declared) {
        return Ok(numbered);
    }
    // If one key has bytes and another the names of the same images, the bytes are used under these
    // names.
    let with_bytes = declared.iter().position(|(_, images)| images.iter().all(has_bytes));
    let mut rest: Vec<&Declared<'_>> = declared.iter().collect();
    let main = match with_bytes {
        Some(at) => rest.remove(at),
        None => {
            let longest = (0..rest.len()).rev().max_by_key(|&k| rest[k].1.len()).unwrap_or(0);
            rest.remove(longest)
        }
    };
    let same = |(_, images): &&Declared<'_>| {
        if with_bytes.is_some() {
            images.len() == main.1.len() && !images.iter().any(has_bytes)
        } else {
            images.iter().all(|image| main.1.iter().any(|other| file(other) == file(image)))
        }
    };
    if let Some((key, images)) = rest.iter().find(|declared| !same(declared)) {
        return Err(Reject::ambiguous_images(format!(
            "{} under {:?} and {} under {key:?}; put all of them into one list, and remove the \
                 other key",
            count(main.1.len(), "image"),
            main.0,
            count(images.len(), "other")
        )));
    }
    Ok(main.1.clone())
}

/// The images of keys that differ only by a number at their end or by `left` and `right`, in the
/// order of the numbers or of the row.
fn numbered(declared: &[Declared<'_>]) -> Option<Vec<RowImage>> {
    const SIDES: [&str; 4] = ["left", "right", "first", "second"];
    let number = |key: &str| -> Option<(String, u32)> {
        let lower = key.to_lowercase();
        let stem = lower.trim_end_matches(|c: char| c.is_ascii_digit());
        if stem.len() < lower.len() {
            return Some((
                stem.trim_end_matches(['_', '-']).to_owned(),
                lower[stem.len()..].parse().ok()?,
            ));
        }
        let side = SIDES.iter().position(|side| lower.contains(side))?;
        Some((lower.replace(SIDES[side], ""), side as u32))
    };
    let mut parts = declared
        .iter()
        .map(|(key, images)| number(key).map(|(stem, number)| (stem, number, images)))
        .collect::<Option<Vec<_>>>()?;
    let is_one = parts.iter().all(|(stem, ..)| *stem == parts[0].0);
    parts.sort_by_key(|(_, number, _)| *number);
    let images = parts.iter().flat_map(|(.., images)| images.iter().cloned()).collect();
    is_one.then_some(images)
}

/// Whether a value under an unknown key only names images that the row has anyway, or only tells
/// where they came from.
fn is_known(value: &Field, images: &[RowImage]) -> bool {
    match value {
        Field::Text(text) => {
            let named = RowImage::named(text.trim());
            !images.is_empty()
                && (is_url(&named) || images.iter().any(|image| file(image) == file(&named)))
        }
        Field::List(list) => list.iter().all(|item| is_known(item, images)),
        _ => false,
    }
}

fn unsupported(key: &str, value: &Field) -> Reject {
    Reject::unsupported_media(format!("the row has {key:?} ({})", example(value)))
}

fn example(value: &Field) -> String {
    match value {
        Field::Text(text) => shown(text),
        Field::List(list) => list.first().map_or("an empty list".to_owned(), example),
        Field::Object(record) => format!("an object with {}", record.keys()),
        other => other.kind().to_owned(),
    }
}

fn is_url(image: &RowImage) -> bool {
    let name = &image.name;
    image.bytes.is_none() && name.contains("://") && !name.starts_with("file://")
}

fn has_bytes(image: &RowImage) -> bool {
    image.bytes.is_some()
}

/// The last part of an image's name.
fn file(image: &RowImage) -> &str {
    image.name.rsplit(['/', '\\']).next().unwrap_or(&image.name)
}

/// Whether a column called `name` may hold images of rows.
pub(crate) fn is_image_column(name: &str, chosen: &[String]) -> bool {
    if chosen.is_empty() {
        keys::kind_of(name) == KeyKind::Image
    } else {
        chosen.iter().any(|key| is_key(name, key) || key == name)
    }
}
