//! Which kind of data set a path is, told by its content.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DataError;
use crate::json_list::JsonListSource;
use crate::jsonl::JsonlSource;
use crate::mixture::Concatenation;
use crate::parquet::{PageCache, ParquetSource};
use crate::shards::{MANIFEST_FILE, ShardSource};
use crate::source::RowSource;
use crate::webdataset::WebDatasetSource;

const SUPPORTED: &str = "expected JSON lines (.jsonl), a JSON list of rows as LLaVA's (.json), \
    Parquet with a column \"conversations\" (.parquet), a WebDataset archive (.tar), a folder of \
    Parquet files or archives, or a folder that `cargo xtask prepare-data` made";

/// Opens a data set of any supported form. Image names in its rows are relative to `images_root`,
/// without one to the folder that holds the rows.
///
/// # Errors
/// What cannot be read or is of no supported form; the message lists the forms.
pub fn open_source(
    path: &Path,
    images_root: Option<&Path>,
) -> Result<Arc<dyn RowSource>, DataError> {
    let metadata = path.metadata().map_err(DataError::io(path, "open the rows"))?;
    if metadata.is_dir() {
        return open_folder(path, images_root);
    }
    let start = first_bytes(path).map_err(DataError::io(path, "read the rows"))?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let is_lines = ["jsonl", "ndjson"].contains(&extension.to_ascii_lowercase().as_str());
    let unsupported = |found: &str| DataError::content(path, format!("{found}; {SUPPORTED}"));
    Ok(match Form::of(&start) {
        Form::Parquet => Arc::new(ParquetSource::open(path, images_root)?),
        Form::Tar => Arc::new(WebDatasetSource::open(path)?),
        Form::Arrow => {
            return Err(unsupported(
                "a single Arrow file; name the folder that it lies in with its manifest.json",
            ));
        }
        Form::Compressed => return Err(unsupported("a compressed file; unpack it first")),
        Form::Binary => return Err(unsupported("not a data set of a known form")),
        Form::List if !is_lines => Arc::new(JsonListSource::open(path, images_root)?),
        Form::Object | Form::List | Form::Empty => Arc::new(JsonlSource::open(path, images_root)?),
        Form::Text if is_lines => Arc::new(JsonlSource::open(path, images_root)?),
        Form::Text => return Err(unsupported("text that is not JSON")),
    })
}

fn open_folder(path: &Path, images_root: Option<&Path>) -> Result<Arc<dyn RowSource>, DataError> {
    if path.join(MANIFEST_FILE).exists() {
        return Ok(Arc::new(ShardSource::open(path)?));
    }
    let files = visible_files(path).map_err(DataError::io(path, "list the folder"))?;
    let of_kind = |kind: &str| -> Vec<&PathBuf> {
        let is_kind = |file: &&PathBuf| {
            file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(kind))
        };
        files.iter().filter(is_kind).collect()
    };
    let (parquet, tar) = (of_kind("parquet"), of_kind("tar"));
    let parts: Vec<Arc<dyn RowSource>> = match (parquet.is_empty(), tar.is_empty()) {
        (false, true) => {
            let cache = Arc::new(PageCache::default());
            let root = images_root.unwrap_or(path);
            let open = |file| ParquetSource::open_with(file, Some(root), Arc::clone(&cache));
            parquet
                .into_iter()
                .map(|file| Ok(Arc::new(open(file)?) as _))
                .collect::<Result<_, DataError>>()?
        }
        (true, false) => tar
            .into_iter()
            .map(|file| Ok(Arc::new(WebDatasetSource::open(file)?) as _))
            .collect::<Result<_, DataError>>()?,
        (false, false) => {
            return Err(DataError::content(
                path,
                "holds Parquet files and archives; name a folder with one kind of them",
            ));
        }
        (true, true) => {
            let found = match files.first() {
                Some(file) => format!("{} files, the first {}", files.len(), file.display()),
                None => "no files".to_owned(),
            };
            let hint = if of_kind("arrow").is_empty() {
                ""
            } else {
                " (Arrow shards without their manifest.json: run prepare-data to its end)"
            };
            return Err(DataError::content(path, format!("{found}{hint}; {SUPPORTED}")));
        }
    };
    Ok(Arc::new(Concatenation::new(parts)))
}

/// The files that [`open_source`] reads rows from, in their order; of a prepared folder its manifest,
/// which has the hashes of all others. Pictures that lie in files of their own are not among them.
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
    let mut files = visible_files(path)?;
    let is_kind = |file: &PathBuf, kind: &str| {
        file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(kind))
    };
    files.retain(|file| is_kind(file, "parquet") || is_kind(file, "tar"));
    Ok(files)
}

/// The folder's files in the order of their names, without hidden ones.
fn visible_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes()[0] == b'.');
        if !is_hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Empty,
    Parquet,
    Arrow,
    Tar,
    Compressed,
    /// Text that begins with `[`.
    List,
    /// Text that begins with `{`.
    Object,
    Text,
    Binary,
}

impl Form {
    fn of(start: &[u8]) -> Self {
        const TAR_MAGIC: std::ops::Range<usize> = 257..262;
        const COMPRESSED: [&[u8]; 5] =
            [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"BZh", b"\xfd7zXZ"];
        if start.starts_with(b"PAR1") {
            return Self::Parquet;
        }
        if start.starts_with(b"ARROW1") {
            return Self::Arrow;
        }
        if start.get(TAR_MAGIC) == Some(b"ustar") {
            return Self::Tar;
        }
        if COMPRESSED.iter().any(|magic| start.starts_with(magic)) {
            return Self::Compressed;
        }
        let text = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start);
        match text.trim_ascii_start().first() {
            None => Self::Empty,
            Some(b'[') => Self::List,
            Some(b'{') => Self::Object,
            Some(_) if start.contains(&0) => Self::Binary,
            Some(_) => Self::Text,
        }
    }
}

fn first_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut start = vec![0; 4096];
    let mut file = File::open(path)?;
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    start.truncate(length);
    Ok(start)
}
