//! Opens a data set of any supported form; its content tells which form it has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vlm_display::count;

use crate::arrow::ArrowTable;
use crate::csv::{self, CsvTable};
use crate::error::DataError;
use crate::file_source::RowFile;
use crate::folder::FolderFiles;
use crate::form;
use crate::json_list::JsonList;
use crate::jsonl::JsonLines;
use crate::mixture::Concatenation;
use crate::parquet::{self, PageCache, ParquetTable};
use crate::rated::RatingFilter;
use crate::row_options::RowOptions;
use crate::row_text::without_mark;
use crate::shards::{MANIFEST_FILE, ShardSource};
use crate::sniff::Format;
use crate::source::RowSource;
use crate::webdataset::WebDatasetSource;

const SUPPORTED: &str = "expected JSON lines (.jsonl), a JSON list of rows (.json), CSV or TSV, each \
    also in gzip or zstd, Parquet (.parquet), Arrow (.arrow, .feather), a WebDataset archive (.tar), \
    a folder of files of one of these kinds, or a folder that `cargo xtask prepare-data` made";

/// Opens a data set of any supported form with the default options. Image names in its rows are
/// relative to `images_root`, or to the folder of the rows if that is `None`.
///
/// # Errors
/// A path that cannot be read or is of no supported form; the message lists the forms.
pub fn open_source(
    path: &Path,
    images_root: Option<&Path>,
) -> Result<Arc<dyn RowSource>, DataError> {
    open_source_with(path, images_root, &RowOptions::default())
}

/// Like [`open_source`], with other options.
///
/// # Errors
/// As for [`open_source`].
pub fn open_source_with(
    path: &Path,
    images_root: Option<&Path>,
    options: &RowOptions,
) -> Result<Arc<dyn RowSource>, DataError> {
    let (options_of_all, cache) = (Arc::new(options.clone()), Arc::new(parquet::page_cache()));
    let opener = Opener { images_root, options: options_of_all, cache };
    let metadata = path.metadata().map_err(DataError::io(path, "open the rows"))?;
    let source = if metadata.is_dir() { opener.folder(path) } else { opener.file(path) }?;
    if options.min_ratings.is_empty() {
        return Ok(source);
    }
    Ok(Arc::new(RatingFilter::new(source)?))
}

struct Opener<'a> {
    images_root: Option<&'a Path>,
    options: Arc<RowOptions>,
    /// Pages that the Parquet files of a folder share.
    cache: Arc<PageCache>,
}

impl Opener<'_> {
    fn file(&self, path: &Path) -> Result<Arc<dyn RowSource>, DataError> {
        let file = RowFile::open(path, self.images_root, &self.options)?;
        let start = file.plain.start()?;
        let unsupported = |found: &str| DataError::content(path, format!("{found}; {SUPPORTED}"));
        Ok(match Format::detect(&start) {
            Format::Empty => {
                return Err(unsupported("this file is empty and holds no rows; download it again"));
            }
            Format::Parquet if file.plain.encodings.is_empty() => {
                Arc::new(ParquetTable::open(file, Arc::clone(&self.cache))?)
            }
            Format::Parquet => {
                return Err(unsupported("found a compressed Parquet file; unpack it"));
            }
            Format::ArrowFile | Format::ArrowStream => Arc::new(ArrowTable::open(file)?),
            Format::Tar => Arc::new(WebDatasetSource::open(file)?),
            Format::List => Arc::new(JsonList::open(file)?),
            Format::Object if is_lines(&start) => Arc::new(JsonLines::open(file)?),
            Format::Object => Arc::new(JsonList::open_objects(file)?),
            Format::Unsupported(found, advice) => {
                return Err(unsupported(&format!("found {found}: {advice}")));
            }
            Format::Text if is_named(path, &["csv", "tsv"]) || csv::header(&start).is_some() => {
                Arc::new(CsvTable::open(file)?)
            }
            Format::Text if is_named(path, &["jsonl", "ndjson"]) => {
                Arc::new(JsonLines::open(file)?)
            }
            Format::Text => {
                let begins = String::from_utf8_lossy(&start[..start.len().min(40)]).into_owned();
                return Err(unsupported(&format!(
                    "found text that is neither JSON nor a table with a line of known columns (it \
                     begins with {begins:?})"
                )));
            }
        })
    }

    fn folder(&self, path: &Path) -> Result<Arc<dyn RowSource>, DataError> {
        if path.join(MANIFEST_FILE).exists() {
            return Ok(Arc::new(ShardSource::open(path)?));
        }
        let is_begun = path.join(".progress").exists() || path.join("shard-00000.arrow").exists();
        if is_begun {
            return Err(DataError::content(
                path,
                format!(
                    "the shards of `cargo xtask prepare-data` are incomplete, {MANIFEST_FILE} is \
                     missing: run the same command again to complete them"
                ),
            ));
        }
        let FolderFiles { kind, files, held_out, found, num_others, other } =
            FolderFiles::find(path).map_err(DataError::io(path, "list the folder"))?;
        if kind.is_none() && !found.is_empty() {
            let kinds =
                found.iter().map(|(kind, file)| format!("{} ({})", kind.name(), file.display()));
            return Err(DataError::content(
                path,
                format!(
                    "the folder has rows in files of several kinds: {}; name the files, or a \
                     folder with one kind",
                    kinds.collect::<Vec<_>>().join(", ")
                ),
            ));
        }
        if files.is_empty() {
            let found = match other {
                Some(file) if form::is_image_name(&file.to_string_lossy()) => format!(
                    "found {}, among them images such as {}, but no file of rows (such as \
                     metadata.jsonl with \"file_name\" and \"text\")",
                    count(num_others, "file"),
                    file.display()
                ),
                Some(file) => format!(
                    "found {} such as {}, but no file of rows",
                    count(num_others, "file"),
                    file.display()
                ),
                None => "the folder is empty".to_owned(),
            };
            return Err(DataError::content(path, format!("{found}; {SUPPORTED}")));
        }
        if let [first, ..] = &held_out[..] {
            tracing::warn!(
                "{}: leaving out {} of a held-out part ({}, …); name a file to train on it",
                path.display(),
                count(held_out.len(), "file"),
                first.display()
            );
        }
        let options =
            RowOptions { images_beside: Some(path.to_owned()), ..(*self.options).clone() };
        let opener = Opener { options: Arc::new(options), cache: Arc::clone(&self.cache), ..*self };
        let parts = files.iter().map(|file| opener.file(file));
        let mut parts = parts.collect::<Result<Vec<_>, DataError>>()?;
        Ok(match parts.len() {
            1 => parts.remove(0),
            _ => Arc::new(Concatenation::new(parts)),
        })
    }
}

/// Whether a file that begins with an object has one object per line: the first line is a whole
/// object, or the second one begins another object.
fn is_lines(start: &[u8]) -> bool {
    let text = without_mark(start).trim_ascii_start();
    let Some(end) = memchr::memchr(b'\n', text) else {
        // There is only one line, or the beginning of a long one.
        return !starts_wrapper(text);
    };
    let line = text[..end].trim_ascii_end();
    let line = line.strip_suffix(b",").unwrap_or(line);
    if serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok() {
        return !text[end..].trim_ascii().is_empty() || !starts_wrapper(line);
    }
    let is_pretty = line == b"{" || line.ends_with(b"{") || line.ends_with(b"[");
    let is_next_object = text[end..].trim_ascii_start().starts_with(b"{");
    !is_pretty && (is_next_object || line.ends_with(b"}"))
}

/// Whether an object begins like one that holds a list of rows: with `{"data": [{`, or with other
/// keys before it and none of a row.
fn starts_wrapper(text: &[u8]) -> bool {
    let mut scan = crate::json_objects::ObjectScan::default();
    scan.take(text).is_ok() && scan.looks_like_wrapper()
}

/// Whether the file's name has one of these extensions, apart from that of a compression.
fn is_named(path: &Path, extensions: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let plain = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    extensions.iter().any(|extension| plain.ends_with(&format!(".{extension}")))
}

/// The files that [`open_source`] reads rows from, in order. For a prepared folder this is the
/// manifest, which has the hashes of all other files. Files of images are not included.
///
/// # Errors
/// A folder that cannot be listed.
pub(crate) fn files_of_rows(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let manifest = path.join(MANIFEST_FILE);
    if manifest.exists() {
        return Ok(vec![manifest]);
    }
    Ok(FolderFiles::find(path)?.files)
}
