//! Tells which keys of a row hold images, and which hold media that are not trained on, by the
//! words of a key: `image_path`, `imageFile` and `left-image` hold images, `image_size` and
//! `caption` do not.

use crate::record::{Field, Record};

/// The key of an image has one of these words.
const IMAGE_WORDS: [&str; 20] = [
    "image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos",
    "jpg", "jpeg", "png", "webp", "screenshot", "screenshots", "frame", "frames", "pixel",
    "figure",
];
/// The key of another medium has one of these words.
const OTHER_WORDS: [&str; 14] = [
    "video", "videos", "audio", "audios", "speech", "sound", "sounds", "mp4", "wav", "mp3", "clip",
    "clips", "waveform", "spectrogram",
];
/// Words that may stand beside them.
const NEUTRAL_WORDS: [&str; 38] = [
    "path", "paths", "file", "files", "filename", "filenames", "filepath", "filepaths", "name",
    "names", "bytes", "data", "base64", "b64", "list", "url", "urls", "uri", "uris", "src",
    "local", "rel", "relative", "abs", "absolute", "full", "input", "inputs", "main", "left",
    "right", "values", "first", "second", "query", "raw", "binary", "encoded",
];
/// Keys that hold the name of an image although they have no image word.
const FILE_KEYS: [&str; 4] = ["file_name", "filename", "file_path", "filepath"];

const IMAGE_EXTENSIONS: [&str; 13] = [
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jfif",
    "svg",
];

/// What a key holds, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    Image,
    OtherMedia,
    /// Neither images nor other media.
    Text,
}

/// What a key called `name` holds.
pub(crate) fn kind_of(name: &str) -> KeyKind {
    // Keys that nearly every row has; splitting them into words would cost time.
    match name {
        "image" | "images" | "image_bytes" => return KeyKind::Image,
        "id" | "conversations" | "messages" | "texts" | "source" => return KeyKind::Text,
        _ => {}
    }
    let words = words(name);
    let is_all = |table: &[&str]| {
        // `image2` is `image`.
        let is_in = |word: &String| {
            let stem = word.trim_end_matches(|c: char| c.is_ascii_digit());
            table.contains(&word.as_str()) || table.contains(&stem)
        };
        let is_known = |word: &String| {
            let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
            is_in(word) || NEUTRAL_WORDS.contains(&word.as_str()) || is_number
        };
        words.iter().any(is_in) && words.iter().all(is_known)
    };
    if words.is_empty() {
        return KeyKind::Text;
    }
    if FILE_KEYS.contains(&words.join("_").as_str()) || is_all(&IMAGE_WORDS) {
        KeyKind::Image
    } else if is_all(&OTHER_WORDS) {
        KeyKind::OtherMedia
    } else {
        KeyKind::Text
    }
}

/// Whether a value can only be an image or the name of one.
pub(crate) fn looks_like_image(value: &Field) -> bool {
    match value {
        Field::Text(text) => is_image_name(text) || text.starts_with("data:image/"),
        Field::List(list) => !list.is_empty() && list.iter().all(looks_like_image),
        Field::Object(record) => is_image_object(record),
        Field::Bytes(bytes) => image::guess_format(bytes).is_ok(),
        _ => false,
    }
}

/// Whether an object is `{"bytes": …, "path": …}`, the form of images and audio in Hugging Face's
/// `datasets`.
fn is_image_object(record: &Record) -> bool {
    let has = |key: &str| record.0.iter().any(|(name, _)| name == key);
    let is_only = record.0.len() == 2 && has("bytes") && has("path");
    is_only && !record.0.iter().all(|(_, value)| value.is_empty())
}

/// Whether `text` ends like the name of an image file.
pub(crate) fn is_image_name(text: &str) -> bool {
    const MAX_NAME: usize = 1024;
    let text = text.trim();
    if text.len() > MAX_NAME || text.contains('\n') {
        return false;
    }
    let plain = text.split(['?', '#']).next().unwrap_or(text);
    plain.rsplit_once('.').is_some_and(|(stem, extension)| {
        let is_known = IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known));
        !stem.is_empty() && is_known
    })
}

/// Splits a key into its words: `imagePath_2` → `image`, `path`, `2`.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut before = ' ';
    for c in name.trim().chars() {
        if c.is_alphanumeric() {
            let begins = !before.is_alphanumeric() || (before.is_lowercase() && c.is_uppercase());
            if begins {
                words.push(String::new());
            }
            if let Some(word) = words.last_mut() {
                word.extend(c.to_lowercase());
            }
        }
        before = c;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_classified_by_their_words() {
        for name in [
            "image", "images", "image_path", "imagePath", "Image File", "img", "picture", "photo",
            "pixel_values_path", "image_1", "image2", "left_image", "image_base64", "jpg",
            "image_bytes", "file_name", "fileName", "image-url", "input_image", "frames",
        ] {
            assert_eq!(kind_of(name), KeyKind::Image, "{name}");
        }
        for name in ["video", "videos", "audio_path", "video_url", "mp4", "speech"] {
            assert_eq!(kind_of(name), KeyKind::OtherMedia, "{name}");
        }
        for name in [
            "image_size", "image_id", "caption", "image_caption", "id", "source", "image_width",
            "", "video_description", "imagenet_label", "conversations", "file", "data", "path",
        ] {
            assert_eq!(kind_of(name), KeyKind::Text, "{name}");
        }
    }

    #[test]
    fn an_image_name_is_recognised_by_its_extension() {
        for name in ["a.jpg", "x/y.PNG", "http://h/a.jpeg?size=3", "Paris, France.webp"] {
            assert!(is_image_name(name), "{name}");
        }
        for name in ["jpg", ".jpg", "a.txt", "I saved it as a.jpg\nand left", "coco"] {
            assert!(!is_image_name(name), "{name}");
        }
    }
}
