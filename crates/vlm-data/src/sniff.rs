//! Tells the format of a file by its first bytes, and describes formats that are not supported.

use crate::row_text::without_mark;

/// Whether `text` begins with `word`, in any case.
pub(crate) fn starts_with_word(text: &[u8], word: &str) -> bool {
    text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Empty,
    Parquet,
    /// Arrow's file format: Feather version 2.
    ArrowFile,
    /// Arrow's stream format, which Hugging Face's `datasets` saves.
    ArrowStream,
    Tar,
    /// Text that begins with `[`.
    List,
    /// Text that begins with `{`.
    Object,
    /// Other text.
    Text,
    /// Another format: what it is, and what to do about it.
    Unsupported(&'static str, &'static str),
}

impl Format {
    pub(crate) fn detect(start: &[u8]) -> Self {
        const TAR_MAGIC: std::ops::Range<usize> = 257..262;
        const ADVICE: [(&[u8], &str, &str); 22] = [
            (
                b"version https://git-lfs",
                "a Git LFS pointer instead of the data",
                "run `git lfs pull`, or download the file itself",
            ),
            (
                b"PK\x03\x04",
                "a zip archive (also .xlsx and .npz)",
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
            (b"FEA1", "a Feather file of version 1", "write it as version 2, or as Parquet"),
            (b"%PDF", "a PDF document", "name the file of the rows"),
            (
                b"\x89PNG",
                "a PNG image",
                "name the file of the rows, and the folder of the images by `images_path`",
            ),
            (
                b"\xff\xd8\xff",
                "a JPEG image",
                "name the file of the rows, and the folder of the images by `images_path`",
            ),
            (b"RIFF", "a WebP image or an audio file", "name the file of the rows"),
            (b"\x7fELF", "a program", "name the file of the rows"),
            (b"GGUF", "a GGUF model", "name the file of the rows"),
        ];
        if start.starts_with(b"PAR1") {
            return Self::Parquet;
        }
        if start.starts_with(b"ARROW1") {
            return Self::ArrowFile;
        }
        // A message of the stream format begins with its marker and a plausible length.
        if let [0xff, 0xff, 0xff, 0xff, _, _, _, 0..=3, ..] = start {
            return Self::ArrowStream;
        }
        if start.get(TAR_MAGIC) == Some(b"ustar") {
            return Self::Tar;
        }
        if let Some((_, found, advice)) = ADVICE.iter().find(|(magic, ..)| start.starts_with(magic))
        {
            return Self::Unsupported(found, advice);
        }
        // Protocols 2 to 5 of pickle.
        if let [0x80, 2..=5, ..] = start {
            return Self::Unsupported("a Python pickle", "write the rows as JSON lines or Parquet");
        }
        if start.len() >= 16 && start.iter().all(|&byte| byte == 0) {
            return Self::Unsupported(
                "only zero bytes, as after an interrupted download",
                "fetch it again",
            );
        }
        let text = without_mark(start).trim_ascii_start();
        let begins = |prefix: &str| starts_with_word(text, prefix);
        match text {
            [] => Self::Empty,
            [b'{' | b'[', b'\'', ..] | [b'[', b'{', b'\'', ..] => {
                Self::Unsupported("Python syntax instead of JSON", "write it with json.dumps")
            }
            [b'[', ..] => Self::List,
            [b'{', ..] => Self::Object,
            _ if begins("<!doctype html") || begins("<html") || begins("<head") => {
                Self::Unsupported(
                    "an HTML page, such as a login or error page, instead of the data",
                    "download the file itself",
                )
            }
            _ if begins("<?xml") => {
                Self::Unsupported("an XML file", "write the rows as JSON lines")
            }
            _ if begins("---") => Self::Unsupported("a YAML file", "write the rows as JSON lines"),
            _ if start.contains(&0) => {
                Self::Unsupported("binary data of an unknown format", "name the file of the rows")
            }
            _ => Self::Text,
        }
    }
}
