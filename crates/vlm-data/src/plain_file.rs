//! Opens a file of rows as plain bytes: gzip and zstd are decompressed, and UTF-16 is converted to
//! UTF-8, once, into an unnamed temporary file that the system removes when it is closed. Rows are
//! then read by position, as from any file.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::DataError;
use crate::limits::MAX_ENCODINGS;
use crate::row_options::RowOptions;

/// Number of bytes from which the format of a file is detected.
const START_BYTES: usize = 4096;
const BUFFER_BYTES: usize = 1 << 20;

/// A file that can be read by position.
#[derive(Debug)]
pub(crate) struct PlainFile {
    /// Path that the user named.
    pub(crate) path: PathBuf,
    /// That file, or its decoded content.
    pub(crate) file: File,
    /// Names of the encodings that were removed: `gzip`, `UTF-16`.
    pub(crate) encodings: Vec<&'static str>,
}

/// An encoding of a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileEncoding {
    Gzip,
    Zstd,
    Utf16 { is_little: bool },
}

impl FileEncoding {
    fn detect(start: &[u8]) -> Option<Self> {
        match start {
            // UTF-32 begins with the same bytes as UTF-16.
            [0xff, 0xfe, 0, 0, ..] => None,
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0xff, 0xfe, ..] | [b'{' | b'[', 0, ..] => Some(Self::Utf16 { is_little: true }),
            [0xfe, 0xff, ..] | [0, b'{' | b'[', ..] => Some(Self::Utf16 { is_little: false }),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Utf16 { .. } => "UTF-16",
        }
    }
}

impl PlainFile {
    /// Opens `path` and removes its encodings.
    ///
    /// # Errors
    /// A file that cannot be read, is truncated, or is larger when decoded than the options allow;
    /// a temporary folder without space.
    pub(crate) fn open(path: &Path, options: &RowOptions) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path, "open the rows"))?;
        let mut plain = Self { path: path.to_owned(), file, encodings: Vec::new() };
        for _ in 0..MAX_ENCODINGS {
            let Some(encoding) = FileEncoding::detect(&plain.start()?) else { break };
            plain.file = plain.decoded(encoding, options)?;
            plain.encodings.push(encoding.name());
        }
        if plain.encodings.len() == MAX_ENCODINGS
            && let Some(further) = FileEncoding::detect(&plain.start()?)
        {
            return Err(DataError::content(
                path,
                format!(
                    "is encoded more than {MAX_ENCODINGS} times ({}, then {}); decompress it first",
                    plain.encodings.join(", "),
                    further.name()
                ),
            ));
        }
        Ok(plain)
    }

    /// The name of `format` with the removed encodings, for messages.
    pub(crate) fn format(&self, format: &str) -> String {
        let around = self.encodings.iter().map(|name| format!(" in {name}"));
        format!("{format}{}", around.collect::<String>())
    }

    /// The first bytes of the file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn start(&self) -> Result<Vec<u8>, DataError> {
        use std::os::unix::fs::FileExt;
        let mut start = vec![0; START_BYTES];
        let mut length = 0;
        while length < start.len() {
            match self.file.read_at(&mut start[length..], length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(DataError::io(&self.path, "read the rows")(e)),
            }
        }
        start.truncate(length);
        Ok(start)
    }

    /// A reader from byte `offset` on.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn reader_from(&self, offset: u64) -> Result<BufReader<File>, DataError> {
        let failed = |e| DataError::io(&self.path, "read the rows")(e);
        let mut file = self.file.try_clone().map_err(failed)?;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        Ok(BufReader::with_capacity(BUFFER_BYTES, file))
    }

    fn decoded(&self, encoding: FileEncoding, options: &RowOptions) -> Result<File, DataError> {
        let broken = |e: std::io::Error| {
            let name = encoding.name();
            DataError::content(
                &self.path,
                format!("cannot be decoded as {name} ({e}); fetch it again, or decode it yourself"),
            )
        };
        let reader = self.reader_from(0)?;
        let mut reader: Box<dyn Read> = match encoding {
            FileEncoding::Gzip => Box::new(MultiGzDecoder::new(reader)),
            FileEncoding::Zstd => {
                Box::new(zstd::stream::read::Decoder::with_buffer(reader).map_err(broken)?)
            }
            FileEncoding::Utf16 { is_little } => Box::new(Utf16::new(reader, is_little)),
        };
        let folder = std::env::temp_dir();
        let unwritable = |e| DataError::io(&folder, "decode the rows into the folder TMPDIR")(e);
        let file = tempfile::tempfile().map_err(unwritable)?;
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, file);
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut total = 0;
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(broken(e)),
            };
            total += read as u64;
            if total > options.max_unpacked_bytes {
                return Err(DataError::content(
                    &self.path,
                    format!(
                        "has more than {} bytes when decoded; decode it yourself, or raise the limit",
                        options.max_unpacked_bytes
                    ),
                ));
            }
            writer.write_all(&buffer[..read]).map_err(unwritable)?;
        }
        writer.into_inner().map_err(|e| unwritable(e.into_error()))
    }
}

/// Converts UTF-16 to UTF-8, without the byte order mark.
struct Utf16<R> {
    reader: R,
    is_little: bool,
    is_at_start: bool,
    /// The first half of a surrogate pair.
    high: Option<u16>,
    /// Text that was not returned yet.
    ready: Vec<u8>,
}

impl<R: Read> Utf16<R> {
    fn new(reader: R, is_little: bool) -> Self {
        Self { reader, is_little, is_at_start: true, high: None, ready: Vec::new() }
    }

    /// The next unit, `None` at the end.
    fn unit(&mut self) -> std::io::Result<Option<u16>> {
        let mut bytes = [0; 2];
        let mut length = 0;
        while length < 2 {
            match self.reader.read(&mut bytes[length..]) {
                Ok(0) if length == 0 => return Ok(None),
                Ok(0) => return Err(std::io::Error::other("the file ends within a character")),
                Ok(read) => length += read,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let from = if self.is_little { u16::from_le_bytes } else { u16::from_be_bytes };
        Ok(Some(from(bytes)))
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        const BYTE_ORDER_MARK: u16 = 0xfeff;
        while self.ready.len() < buffer.len() {
            let Some(unit) = self.unit()? else { break };
            if std::mem::take(&mut self.is_at_start) && unit == BYTE_ORDER_MARK {
                continue;
            }
            let units: Vec<u16> = self.high.take().into_iter().chain([unit]).collect();
            match char::decode_utf16(units.iter().copied()).next() {
                Some(Ok(c)) => self.ready.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                Some(Err(e)) if units.len() == 1 && e.unpaired_surrogate() < 0xdc00 => {
                    self.high = Some(unit);
                }
                _ => return Err(std::io::Error::other("one half of a surrogate pair is missing")),
            }
        }
        let length = self.ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.ready[..length]);
        self.ready.drain(..length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: &[u8], options: &RowOptions) -> Result<(String, Vec<&'static str>), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        std::fs::write(&path, bytes).unwrap();
        let plain = PlainFile::open(&path, options).map_err(|e| e.to_string())?;
        let mut text = String::new();
        plain.reader_from(0).unwrap().read_to_string(&mut text).unwrap();
        Ok((text, plain.encodings))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compressed_and_utf_16_files_are_read_as_their_content() {
        let options = RowOptions::default();
        let text = "{\"a\": \"é 😀\"}\n".repeat(1000);
        let utf16 = |mark: &[u8], bytes: fn(u16) -> [u8; 2]| {
            mark.iter().copied().chain(text.encode_utf16().flat_map(bytes)).collect::<Vec<u8>>()
        };
        let little = utf16(b"\xff\xfe", u16::to_le_bytes);
        let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
        for (bytes, encodings) in [
            (text.clone().into_bytes(), vec![]),
            (gzip(text.as_bytes()), vec!["gzip"]),
            ([gzip(&text.as_bytes()[..99]), gzip(&text.as_bytes()[99..])].concat(), vec!["gzip"]),
            (zstd, vec!["zstd"]),
            (little.clone(), vec!["UTF-16"]),
            (utf16(b"\xfe\xff", u16::to_be_bytes), vec!["UTF-16"]),
            (utf16(b"", u16::to_le_bytes), vec!["UTF-16"]),
            (gzip(&little), vec!["gzip", "UTF-16"]),
        ] {
            assert_eq!(plain(&bytes, &options).unwrap(), (text.clone(), encodings));
        }
    }

    #[test]
    fn truncated_or_too_large_files_are_refused() {
        let options = RowOptions { max_unpacked_bytes: 1000, ..RowOptions::default() };
        let bomb = gzip(&[b' '; 100_000]);
        assert!(plain(&bomb, &options).unwrap_err().contains("more than 1000 bytes"));
        let whole = gzip(&[b'x'; 900]);
        assert!(plain(&whole[..whole.len() - 9], &options).unwrap_err().contains("gzip"));
        let mut nested = b"{}".to_vec();
        for _ in 0..MAX_ENCODINGS {
            nested = gzip(&nested);
        }
        assert_eq!(plain(&nested, &options).unwrap(), ("{}".to_owned(), vec!["gzip"; 3]));
        let refusal = plain(&gzip(&nested), &options).unwrap_err();
        assert!(refusal.contains("is encoded more than 3 times"), "{refusal}");
        assert!(plain(b"\xff\xfe{\0\0", &options).unwrap_err().contains("UTF-16"));
        assert!(plain(b"\xff\xfe{\0\x3d\xd8x\0", &options).unwrap_err().contains("surrogate pair"));
    }
}
