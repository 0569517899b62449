//! Finds the samples of a tar archive in the form of WebDataset. Only headers are read.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use vlm_display::count;

use crate::error::DataError;
use crate::plain_file::PlainFile;
use crate::row_options::RowOptions;
use crate::row_text::ByteRange;

/// Extensions of images, including formats that cannot be decoded.
const IMAGE_EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "jp2"];
/// Extensions of captions.
const TEXT_EXTENSIONS: [&str; 4] = ["txt", "text", "caption", "cap"];
/// Extensions of media that are not trained on, so that their samples are rejected.
const OTHER_EXTENSIONS: [&str; 8] = ["mp4", "webm", "avi", "mkv", "mov", "wav", "mp3", "flac"];

/// The members of one sample. A member's header is the block before its content.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) json: Option<ByteRange>,
    pub(crate) text: Option<ByteRange>,
    /// Indices in `images` of the index.
    pub(crate) images: Range<u32>,
    /// Whether it has video or audio.
    pub(crate) has_other_media: bool,
}

/// The content of an archive.
pub(crate) struct Index {
    pub(crate) samples: Vec<Sample>,
    /// The images of all samples, those of one sample together.
    pub(crate) images: Vec<ByteRange>,
}

/// Finds the samples. Members with the same key belong to one sample, adjacent or not. A member of
/// a kind that the sample already has begins another sample, as where archives were joined.
///
/// # Errors
/// An archive that is broken or has more members than the options allow.
pub(crate) fn index(
    plain: &PlainFile,
    length: u64,
    options: &RowOptions,
) -> Result<Index, DataError> {
    let path = &plain.path;
    let mut archive = tar::Archive::new(plain.reader_from(0)?);
    let cut_off = |num_samples: usize, problem: String| {
        let samples = count(num_samples, "sample");
        DataError::content(path, format!("broken after {samples}: {problem}"))
    };
    let entries = archive.entries_with_seek().map_err(|e| cut_off(0, e.to_string()))?;
    let mut samples: Vec<Sample> = Vec::new();
    let mut images: Vec<(u32, ByteRange)> = Vec::new();
    let mut by_key: HashMap<u128, u32> = HashMap::new();
    let mut seen: HashSet<(u32, u128)> = HashSet::new();
    let mut last_key = String::new();
    let mut current = 0;
    for (number, entry) in entries.enumerate() {
        let entry = entry.map_err(|e| cut_off(samples.len(), e.to_string()))?;
        if number >= options.max_archive_members {
            let limit = options.max_archive_members;
            return Err(DataError::content(
                path,
                format!("the archive has more than {limit} members; split it"),
            ));
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some((key, extension)) = split_name(&name) else { continue };
        let member = ByteRange { offset: entry.raw_file_position(), bytes: entry.size() };
        if member.offset.checked_add(member.bytes).is_none_or(|end| end > length) {
            return Err(cut_off(
                samples.len(),
                format!("{name} goes beyond the end of the file; fetch it again"),
            ));
        }
        let kind = extension.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        let kind = kind.as_str();
        if samples.is_empty() || key != last_key {
            current = *by_key.entry(short_hash(key)).or_insert_with(|| push(&mut samples));
            key.clone_into(&mut last_key);
        }
        if !seen.insert((current, short_hash(extension))) {
            current = push(&mut samples);
            by_key.insert(short_hash(key), current);
            seen.insert((current, short_hash(extension)));
        }
        let sample = &mut samples[current as usize];
        if kind == "json" {
            sample.json = Some(member);
        } else if TEXT_EXTENSIONS.contains(&kind) {
            sample.text = Some(member);
        } else if IMAGE_EXTENSIONS.contains(&kind) {
            images.push((current, member));
        } else if OTHER_EXTENSIONS.contains(&kind) {
            sample.has_other_media = true;
        }
    }
    // The images of one sample are put together, in the order of the archive.
    images.sort_by_key(|(sample, _)| *sample);
    for (k, (sample, _)) in images.iter().enumerate() {
        let range = &mut samples[*sample as usize].images;
        if range.start == range.end {
            range.start = k as u32;
        }
        range.end = k as u32 + 1;
    }
    // A sample with none of these members is not a row: some writers add an index.
    samples.retain(|sample| {
        let is_conversation = sample.json.is_some() || sample.images.start < sample.images.end;
        is_conversation || sample.has_other_media
    });
    Ok(Index { samples, images: images.into_iter().map(|(_, member)| member).collect() })
}

/// A short key for a name while the archive is indexed.
fn short_hash(name: &str) -> u128 {
    let hash = blake3::hash(name.as_bytes());
    u128::from_le_bytes(*hash.as_bytes().first_chunk().unwrap_or(&[0; 16]))
}

/// Begins a sample and returns its number.
fn push(samples: &mut Vec<Sample>) -> u32 {
    samples.push(Sample { json: None, text: None, images: 0..0, has_other_media: false });
    samples.len() as u32 - 1
}

/// Splits `dir/0001.left.jpg` into `dir/0001` and `left.jpg`: as in WebDataset, a sample's key ends
/// at the first dot of the file's name. Files that macOS adds to archives belong to no sample.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix("./").unwrap_or(name);
    if name.split('/').any(|part| part.starts_with("._") || part == "__MACOSX") {
        return None;
    }
    let file_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file_start + name[file_start..].find('.')?;
    (dot > file_start).then(|| (&name[..dot], &name[dot + 1..]))
}
