//! Finds the tags that stand for images in texts: [`IMAGE_TAG`] and the tags of other programs.
//! Each image of a row is given a position in a turn that shows images. A tag without an image, or
//! of a medium that is not trained on, rejects the row, unless the text only mentions the tag, as a
//! text about HTML does.

use std::ops::Range;

use vlm_display::count;

use crate::reject::{Reject, RejectReason};
use crate::rows::{IMAGE_TAG, Role, RowImage, Turn, shows_images};

/// Other spellings of an image. They mean nothing else in any context; the likely
/// ones below are text if the row has no image.
const CERTAIN_TAGS: [&str; 20] = [
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|>",
    "<|image_pad|>",
    "<|image|>",
    "<|image_start|>",
    "<|img|>",
    "<|media_pad|>",
    "<ImageHere>",
    "<start_of_image>",
    "<image_soft_token>",
    "<image_placeholder>",
    "<image_token>",
    "<img><IMG_CONTEXT>",
    "<IMG_CONTEXT>",
    "<im_start><image><im_end>",
    "<im_patch>",
    "<fake_token_around_image>",
    "<image_pad>",
    "(<image>./</image>)",
    "<|endofimage|>",
];
const LIKELY_TAGS: [&str; 8] =
    ["<IMAGE>", "<Image>", "<IMG>", "<img>", "[IMG]", "[IMAGE]", "<picture>", "<images>"];
/// Tags of media that are not trained on.
const OTHER_TAGS: [&str; 12] = [
    "<video>", "<audio>", "<|video|>", "<|audio|>", "<|video_pad|>", "<|audio_pad|>",
    "<|audio_bos|>", "<|AUDIO|>", "<speech>", "<sound>", "<VideoHere>", "<AudioHere>",
];

/// A tag of another program in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tag {
    range: Range<usize>,
    /// Number of the image, from 1, if the tag has one.
    number: Option<usize>,
    is_certain: bool,
}

/// Takes the images that the texts themselves name as `<img>a.jpg</img>`, like Qwen-VL's rows, and
/// replaces each of them by an [`IMAGE_TAG`].
pub(super) fn take_named(turns: &mut [Turn]) -> Vec<RowImage> {
    const OPEN: &str = "<img>";
    const CLOSE: &str = "</img>";
    const MAX_NAME: usize = 2048;
    let mut images = Vec::new();
    for k in 0..turns.len() {
        if !shows_images(turns, k) || !turns[k].content.contains(CLOSE) {
            continue;
        }
        let content = &turns[k].content;
        let mut text = String::with_capacity(content.len());
        let mut rest = 0;
        while let Some(open) = content[rest..].find(OPEN).map(|at| rest + at) {
            let start = open + OPEN.len();
            let Some(end) = content[start..].find(CLOSE).map(|at| start + at) else { break };
            let name = content[start..end].trim();
            let is_name = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(['<', '\n']);
            let whole = open..end + CLOSE.len();
            text.push_str(&content[rest..open]);
            if is_name && !is_quoted(content, &whole) {
                text.push_str(IMAGE_TAG);
                images.push(RowImage::named(name));
            } else {
                text.push_str(&content[whole.clone()]);
            }
            rest = whole.end;
        }
        text.push_str(&content[rest..]);
        turns[k].content = text;
    }
    images
}

/// Gives each of `images` its position. [`IMAGE_TAG`]s in the turns stay as they are, tags of other
/// programs are replaced by [`IMAGE_TAG`]s, and without any tag the images are put before the first
/// user turn, one per line.
///
/// # Errors
/// Tags of other programs whose number is not that of the images; images that no turn can show;
/// tags of video or audio.
pub(super) fn place(turns: &mut [Turn], images: &mut Vec<RowImage>) -> Result<(), Reject> {
    let shown: Vec<usize> = (0..turns.len()).filter(|&k| shows_images(turns, k)).collect();
    for &k in &shown {
        if let Some(tag) = other_medium(&turns[k].content) {
            return Err(Reject::unsupported_media(format!("turn {k} has {tag:?}")));
        }
    }
    if shown.iter().any(|&k| turns[k].content.contains(IMAGE_TAG) && !is_wrapped(&turns[k].content))
    {
        return Ok(());
    }
    let found: Vec<(usize, Tag)> = shown
        .iter()
        .flat_map(|&k| tags(&turns[k].content).into_iter().map(move |tag| (k, tag)))
        .collect();
    if images.is_empty() {
        return match found.iter().find(|(_, tag)| tag.is_certain) {
            Some((k, tag)) => Err(Reject::placeholder_without_image(format!(
                "turn {k} has {:?}, which stands for an image, but the row has no image",
                &turns[*k].content[tag.range.clone()]
            ))),
            None => Ok(()),
        };
    }
    // Likely tags whose number is not that of the images are text.
    let certain = found.iter().filter(|(_, tag)| tag.is_certain).count();
    if found.len() != images.len() && certain == 0 {
        return in_front(turns, images.len());
    }
    if found.len() != images.len() {
        let (k, tag) = &found[0];
        return Err(Reject::placeholder_without_image(format!(
            "{} but {} like {:?}; write one {IMAGE_TAG} for each image",
            count(images.len(), "image"),
            count(found.len(), "tag"),
            &turns[*k].content[tag.range.clone()]
        )));
    }
    reorder(images, &found)?;
    for (k, tag) in found.iter().rev() {
        turns[*k].content.replace_range(tag.range.clone(), IMAGE_TAG);
    }
    Ok(())
}

/// Puts the images into the order in which numbered tags name them.
fn reorder(images: &mut Vec<RowImage>, found: &[(usize, Tag)]) -> Result<(), Reject> {
    let numbers: Vec<usize> = found.iter().filter_map(|(_, tag)| tag.number).collect();
    if numbers.len() != found.len() {
        return Ok(());
    }
    // Some data sets count from 0.
    let first = usize::from(!numbers.contains(&0));
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(first..first + images.len()) {
        return Err(Reject::placeholder_without_image(format!(
            "{}, but the numbers of the tags are {numbers:?}",
            count(images.len(), "image")
        )));
    }
    *images = numbers.iter().map(|&number| images[number - first].clone()).collect();
    Ok(())
}

fn in_front(turns: &mut [Turn], num_images: usize) -> Result<(), Reject> {
    let Some(turn) = turns.iter_mut().find(|turn| turn.role == Role::User) else {
        return Err(Reject::new(
            RejectReason::ImageWithoutPlaceholder,
            format!(
                "{}, but no {IMAGE_TAG} in the turns and no user turn to put images before",
                count(num_images, "image")
            ),
        ));
    };
    let mut tags = vec![IMAGE_TAG; num_images].join("\n");
    if !turn.content.is_empty() {
        tags.push('\n');
    }
    turn.content.insert_str(0, &tags);
    Ok(())
}

/// Whether [`IMAGE_TAG`] occurs only within longer tags of other programs.
fn is_wrapped(text: &str) -> bool {
    const LONGER: [&str; 2] = ["<im_start><image><im_end>", "(<image>./</image>)"];
    let within: usize = LONGER.iter().map(|tag| text.matches(tag).count()).sum();
    within > 0 && within == text.matches(IMAGE_TAG).count()
}

/// The tags of other programs in `text`, in order. Adjacent tags of one kind belong to one image.
fn tags(text: &str) -> Vec<Tag> {
    let mut found: Vec<Tag> = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(['<', '[', '(']).map(|step| at + step) {
        let Some(mut tag) = tag_at(text, start) else {
            at = start + 1;
            continue;
        };
        if is_quoted(text, &tag.range) || (!tag.is_certain && is_mentioned(text, &tag.range)) {
            at = tag.range.end;
            continue;
        }
        // A run of placeholders belongs to one image, together with its opening and closing tags.
        while let Some(next) = tag_at(text, tag.range.end).filter(|next| next.number.is_none()) {
            let is_same = text[next.range.clone()] == text[tag.range.clone()];
            if !tag.is_certain
                || !next.is_certain
                || (is_same && !is_filler(&text[next.range.clone()]))
            {
                break;
            }
            tag.range.end = next.range.end;
        }
        for end in ["<|vision_end|>", "<|image_end|>", "<end_of_image>", "</img>"] {
            if text[tag.range.end..].starts_with(end) {
                tag.range.end += end.len();
            }
        }
        at = tag.range.end;
        found.push(tag);
    }
    found
}

/// Whether a tag stands for one feature of an image, so that a run of it is one image.
fn is_filler(tag: &str) -> bool {
    ["<|image_pad|>", "<IMG_CONTEXT>", "<image_soft_token>", "<im_patch>", "<|media_pad|>"]
        .contains(&tag)
}

fn tag_at(text: &str, start: usize) -> Option<Tag> {
    let rest = &text[start..];
    let known =
        |tags: &[&str]| tags.iter().find(|tag| rest.starts_with(**tag)).map(|tag| tag.len());
    if let Some(length) = known(&CERTAIN_TAGS) {
        return Some(Tag { range: start..start + length, number: None, is_certain: true });
    }
    if let Some((length, number)) = numbered(rest) {
        return Some(Tag { range: start..start + length, number: Some(number), is_certain: true });
    }
    let length = known(&LIKELY_TAGS)?;
    Some(Tag { range: start..start + length, number: None, is_certain: false })
}

/// Length and number of a numbered tag: `<image_1>`, `<image1>`, `<image 1>`, `<|image_1|>`,
/// `<image-1>`.
fn numbered(text: &str) -> Option<(usize, usize)> {
    let (open, close) = if text.starts_with("<|") { ("<|", "|>") } else { ("<", ">") };
    let inner = text.strip_prefix(open)?;
    let word =
        ["image", "Image", "IMAGE", "img"].into_iter().find(|word| inner.starts_with(word))?;
    let rest = &inner[word.len()..];
    let rest = rest.strip_prefix(['_', ' ', '-']).unwrap_or(rest);
    let num_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let number = rest[..num_digits].parse().ok().filter(|_| num_digits <= 3)?;
    let tail = rest[num_digits..].strip_prefix(close)?;
    Some((text.len() - tail.len(), number))
}

/// The first tag of video or audio in `text` that is not only mentioned.
fn other_medium(text: &str) -> Option<&'static str> {
    memchr::memchr_iter(b'<', text.as_bytes()).find_map(|start| {
        let tag = OTHER_TAGS.into_iter().find(|tag| text[start..].starts_with(tag))?;
        let range = start..start + tag.len();
        let is_text =
            is_quoted(text, &range) || (!tag.starts_with("<|") && is_mentioned(text, &range));
        (!is_text).then_some(tag)
    })
}

/// Whether the tag is in code or between quotation marks.
fn is_quoted(text: &str, range: &Range<usize>) -> bool {
    let before = &text[..range.start];
    if before.matches("```").count() % 2 == 1 {
        return true;
    }
    let line = before.rsplit('\n').next().unwrap_or_default();
    if line.replace("```", "").matches('`').count() % 2 == 1 {
        return true;
    }
    let next = text[range.end..].chars().next();
    match before.chars().next_back() {
        Some(quote @ ('"' | '\'')) => next == Some(quote),
        Some('“') => next == Some('”'),
        Some('‘') => next == Some('’'),
        Some('«') => next == Some('»'),
        _ => false,
    }
}

/// Whether the text around the tag shows that it is markup: `the <video> tag`, `<video> …
/// </video>`.
fn is_mentioned(text: &str, range: &Range<usize>) -> bool {
    const AROUND: usize = 40;
    const WORDS: [&str; 8] =
        ["tag", "element", "html", "markup", "xml", "token", "bbcode", "attribute"];
    let tag = &text[range.clone()];
    let closing = match tag.strip_prefix('<') {
        Some(rest) => format!("</{rest}"),
        None => tag.replacen('[', "[/", 1),
    };
    if text[range.end..].contains(&closing) {
        return true;
    }
    let start =
        (0..=range.start.saturating_sub(AROUND)).rev().find(|&at| text.is_char_boundary(at));
    let end = (range.end + AROUND..text.len()).find(|&at| text.is_char_boundary(at));
    let around =
        [&text[start.unwrap_or(0)..range.start], &text[range.end..end.unwrap_or(text.len())]];
    around.iter().any(|text| {
        let words = text.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
        words.into_iter().any(|word| WORDS.contains(&word.trim_end_matches('s')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(text: &str, num_images: usize) -> Result<(String, Vec<String>), RejectReason> {
        let mut turns = vec![Turn::new(Role::User, text), Turn::new(Role::Assistant, "a")];
        let mut images: Vec<_> = (1..=num_images).map(|k| RowImage::named(k.to_string())).collect();
        images.extend(take_named(&mut turns));
        place(&mut turns, &mut images).map_err(|reject| reject.reason)?;
        let content = turns.swap_remove(0).content;
        Ok((content, images.into_iter().map(|image| image.name).collect()))
    }

    #[test]
    fn tags_of_other_programs_are_images_where_the_row_has_as_many() {
        for (text, expected) in [
            ("q", "<image>\nq"),
            ("", "<image>"),
            ("<|image|>q", "<image>q"),
            ("<ImageHere>q", "<image>q"),
            ("q [IMG]", "q <image>"),
            ("<|vision_start|><|image_pad|><|image_pad|><|vision_end|>q", "<image>q"),
            ("<img><IMG_CONTEXT><IMG_CONTEXT></img>q", "<image>q"),
            ("<|image_1|>\nq", "<image>\nq"),
            ("<Image>\nq", "<image>\nq"),
            ("(<image>./</image>)\nq", "<image>\nq"),
            ("Is <img src=\"x\"> a tag?", "<image>\nIs <img src=\"x\"> a tag?"),
        ] {
            assert_eq!(placed(text, 1).unwrap().0, expected, "{text}");
        }
        let (text, order) = placed("<image_2> or <image_1>?", 2).unwrap();
        assert_eq!((text.as_str(), order), ("<image> or <image>?", vec!["2".into(), "1".into()]));
        assert_eq!(placed("q", 2).unwrap().0, "<image>\n<image>\nq");
    }

    #[test]
    fn images_named_within_the_text_are_the_rows_images() {
        let text = "Picture 1: <img>x/a.jpg</img>\nPicture 2: <img>b</img>\nq";
        let (text, images) = placed(text, 0).unwrap();
        assert_eq!(text, "Picture 1: <image>\nPicture 2: <image>\nq");
        assert_eq!(images, ["x/a.jpg", "b"]);
        let code = "What does `<img>a.jpg</img>` mean?";
        assert_eq!(placed(code, 0).unwrap(), (code.to_owned(), vec![]));
    }

    #[test]
    fn a_tag_without_an_image_or_of_another_medium_rejects_the_row() {
        for text in ["<|image|>\nq", "<image_1> q", "q <ImageHere>", "<start_of_image>q"] {
            assert_eq!(placed(text, 0), Err(RejectReason::PlaceholderWithoutImage), "{text}");
        }
        assert_eq!(placed("<image_1> <image_2>", 1), Err(RejectReason::PlaceholderWithoutImage));
        for text in ["<video>\nq", "What happens in <video>?", "<audio>q", "<|video_pad|>"] {
            assert_eq!(placed(text, 0), Err(RejectReason::UnsupportedMedia), "{text}");
        }
    }

    #[test]
    fn text_about_markup_is_text() {
        for text in [
            "How do I close an <img> tag?",
            "<img src=\"a.jpg\"> does not load",
            "The <video> element in HTML5",
            "Use `<video>` and <audio>x</audio>.",
            "```\n<video>\n<|image|>\n```",
            "me@example.org",
            "Write \"<audio>\" here",
            "[IMG]http://x/a.jpg[/IMG]",
            "a < b, b > c [1]",
        ] {
            assert_eq!(placed(text, 0).unwrap(), (text.to_owned(), vec![]), "{text}");
        }
    }
}
