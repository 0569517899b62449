//! Which format a file has, told by its first bytes, and what is said of those that no reader knows.

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Empty,
    Parquet,
    /// Arrow's file format, Feather version 2.
    ArrowFile,
    /// Arrow's stream format, as Hugging Face's `datasets` saves it.
    ArrowStream,
    Tar,
    /// Text that begins with `[`.
    List,
    /// Text that begins with `{`.
    Object,
    /// Other text.
    Text,
    /// Something else: what it is, and what to do about it.
    Other(&'static str, &'static str),
}

impl Format {
    pub(crate) fn of(start: &[u8]) -> Self {
        const TAR_MAGIC: std::ops::Range<usize> = 257..262;
        const ADVICE: [(&[u8], &str, &str); 22] = [
            (
                b"version https://git-lfs",
                "a Git LFS pointer in place of the data",
                "run `git lfs pull`, or download the file itself",
            ),
            (
                b"PK\x03\x04",
                "a zip archive (.xlsx and .npz files are such too)",
                "unpack it; save a table as CSV",
            ),
            (b"BZh", "a bzip2 file", "unpack it, or compress it with gzip or zstd"),
            (b"\xfd7zXZ", "an xz file", "unpack it, or compress it with gzip or zstd"),
            (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
            (b"Rar!", "a RAR archive", "unpack it"),
            (b"\x04\x22\x4d\x18", "an LZ4 file", "unpack it, or compress it with gzip or zstd"),
            (b"\xff\x06\x00\x00sNaPpY", "a Snappy file", "unpack it"),
            (b"\xff\xfe\x00\x00", "UTF-32 text", "save it as UTF-8"),
            (b"\x00\x00\xfe\xff", "UTF-32 text", "save it as UTF-8"),
            (b"\x89HDF", "an HDF5 file", "write the rows as JSON lines or Parquet"),
            (b"SQLite format 3", "an SQLite database", "write the rows as JSON lines or Parquet"),
            (b"\x93NUMPY", "a NumPy array", "write the rows as JSON lines or Parquet"),
            (b"ORC", "an ORC file", "write the rows as Parquet"),
            (b"Obj\x01", "an Avro file", "write the rows as Parquet"),
            (b"FEA1", "a Feather file of version 1", "write it anew with pyarrow, or as Parquet"),
            (b"%PDF", "a PDF document", "name the file of the rows"),
            (
                b"\x89PNG",
                "a PNG image",
                "name the file of the rows, and the images by --images-path",
            ),
            (
                b"\xff\xd8\xff",
                "a JPEG image",
                "name the file of the rows, and the images by --images-path",
            ),
            (b"RIFF", "a WebP image or a sound", "name the file of the rows"),
            (b"\x7fELF", "a program", "name the file of the rows"),
            (b"GGUF", "a GGUF model", "name the file of the rows"),
        ];
        if start.starts_with(b"PAR1") {
            return Self::Parquet;
        }
        if start.starts_with(b"ARROW1") {
            return Self::ArrowFile;
        }
        // A message of the stream format: its marker, and a length that is not absurd.
        if let [0xff, 0xff, 0xff, 0xff, _, _, _, 0..=3, ..] = start {
            return Self::ArrowStream;
        }
        if start.get(TAR_MAGIC) == Some(b"ustar") {
            return Self::Tar;
        }
        if let Some((_, found, advice)) = ADVICE.iter().find(|(magic, ..)| start.starts_with(magic))
        {
            return Self::Other(found, advice);
        }
        // Pickle's protocols 2 to 5.
        if let [0x80, 2..=5, ..] = start {
            return Self::Other("a Python pickle", "write the rows as JSON lines or Parquet");
        }
        if start.len() >= 16 && start.iter().all(|&byte| byte == 0) {
            return Self::Other(
                "nothing but zero bytes, as of a download that stopped",
                "fetch it anew",
            );
        }
        let text = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start).trim_ascii_start();
        let begins = |prefix: &str| {
            text.get(..prefix.len()).is_some_and(|t| t.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        match text {
            [] => Self::Empty,
            [b'{' | b'[', b'\'', ..] | [b'[', b'{', b'\'', ..] => {
                Self::Other("Python's own notation and not JSON", "write it with json.dumps")
            }
            [b'[', ..] => Self::List,
            [b'{', ..] => Self::Object,
            _ if begins("<!doctype html") || begins("<html") || begins("<head") => Self::Other(
                "an HTML page, as of a login or an error, in place of the data",
                "download the file itself",
            ),
            _ if begins("<?xml") => Self::Other("an XML file", "write the rows as JSON lines"),
            _ if begins("---") => Self::Other("a YAML file", "write the rows as JSON lines"),
            _ if start.contains(&0) => {
                Self::Other("binary data of no known format", "name the file of the rows")
            }
            _ => Self::Text,
        }
    }
}
