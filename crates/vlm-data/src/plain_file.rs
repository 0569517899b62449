//! A file of rows as its plain bytes: gzip and zstd are unpacked and UTF-16 is made UTF-8, once, into
//! a file without a name that the system removes when it is closed. Rows are then read by their place,
//! as from any file.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::DataError;
use crate::row_options::RowOptions;

/// How many bytes tell what a file is.
const START_BYTES: usize = 4096;
/// Wrappings around wrappings that are taken off, as UTF-16 that was compressed.
const MAX_LAYERS: usize = 3;
const BUFFER_BYTES: usize = 1 << 20;

/// A file that can be read by position.
#[derive(Debug)]
pub(crate) struct PlainFile {
    /// The file that the user named.
    pub(crate) path: PathBuf,
    /// That file, or what it is without its wrapping.
    pub(crate) file: File,
    /// What was taken off, for a person: `gzip`, `UTF-16`.
    pub(crate) wrapping: Vec<&'static str>,
}

/// What lies around the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrapping {
    Gzip,
    Zstd,
    Utf16 { is_little: bool },
}

impl Wrapping {
    fn of(start: &[u8]) -> Option<Self> {
        match start {
            // UTF-32 begins as UTF-16 does.
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
    /// Opens `path` and takes off what is around its bytes.
    ///
    /// # Errors
    /// A file that cannot be read, is cut off, or is larger unpacked than the options allow; a
    /// temporary folder without room.
    pub(crate) fn open(path: &Path, options: &RowOptions) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path, "open the rows"))?;
        let mut plain = Self { path: path.to_owned(), file, wrapping: Vec::new() };
        for _ in 0..MAX_LAYERS {
            let Some(wrapping) = Wrapping::of(&plain.start()?) else { break };
            plain.file = plain.unwrapped(wrapping, options)?;
            plain.wrapping.push(wrapping.name());
        }
        Ok(plain)
    }

    /// `format` with what was around it, for a person.
    pub(crate) fn format(&self, format: &str) -> String {
        let around = self.wrapping.iter().map(|name| format!(" in {name}"));
        format!("{format}{}", around.collect::<String>())
    }

    /// The first bytes.
    ///
    /// # Errors
    /// The system's.
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
    /// The system's.
    pub(crate) fn reader_from(&self, offset: u64) -> Result<BufReader<File>, DataError> {
        let failed = |e| DataError::io(&self.path, "read the rows")(e);
        let mut file = self.file.try_clone().map_err(failed)?;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        Ok(BufReader::with_capacity(BUFFER_BYTES, file))
    }

    fn unwrapped(&self, wrapping: Wrapping, options: &RowOptions) -> Result<File, DataError> {
        let broken = |e: std::io::Error| {
            let name = wrapping.name();
            DataError::content(
                &self.path,
                format!("cannot be unpacked as {name} ({e}); fetch it anew, or unpack it yourself"),
            )
        };
        let reader = self.reader_from(0)?;
        let mut reader: Box<dyn Read> = match wrapping {
            Wrapping::Gzip => Box::new(MultiGzDecoder::new(reader)),
            Wrapping::Zstd => {
                Box::new(zstd::stream::read::Decoder::with_buffer(reader).map_err(broken)?)
            }
            Wrapping::Utf16 { is_little } => Box::new(Utf16::new(reader, is_little)),
        };
        let folder = std::env::temp_dir();
        let unwritable = |e| DataError::io(&folder, "unpack the rows into the folder TMPDIR")(e);
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
                        "has more than {} bytes unpacked; unpack it yourself, or raise the limit",
                        options.max_unpacked_bytes
                    ),
                ));
            }
            writer.write_all(&buffer[..read]).map_err(unwritable)?;
        }
        writer.into_inner().map_err(|e| unwritable(e.into_error()))
    }
}

/// UTF-8 of UTF-16, its byte order mark left out.
struct Utf16<R> {
    reader: R,
    is_little: bool,
    is_at_start: bool,
    /// The first half of a pair.
    high: Option<u16>,
    /// Text that was not handed over yet.
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
                Ok(0) => return Err(std::io::Error::other("it ends within a character")),
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
                _ => return Err(std::io::Error::other("half a pair of surrogates")),
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
        Ok((text, plain.wrapping))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn wrapped_files_are_read_as_what_is_within() {
        let options = RowOptions::default();
        let text = "{\"a\": \"é 😀\"}\n".repeat(1000);
        let utf16 = |mark: &[u8], bytes: fn(u16) -> [u8; 2]| {
            mark.iter().copied().chain(text.encode_utf16().flat_map(bytes)).collect::<Vec<u8>>()
        };
        let little = utf16(b"\xff\xfe", u16::to_le_bytes);
        let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
        for (bytes, wrapping) in [
            (text.clone().into_bytes(), vec![]),
            (gzip(text.as_bytes()), vec!["gzip"]),
            ([gzip(&text.as_bytes()[..99]), gzip(&text.as_bytes()[99..])].concat(), vec!["gzip"]),
            (zstd, vec!["zstd"]),
            (little.clone(), vec!["UTF-16"]),
            (utf16(b"\xfe\xff", u16::to_be_bytes), vec!["UTF-16"]),
            (utf16(b"", u16::to_le_bytes), vec!["UTF-16"]),
            (gzip(&little), vec!["gzip", "UTF-16"]),
        ] {
            assert_eq!(plain(&bytes, &options).unwrap(), (text.clone(), wrapping));
        }
    }

    #[test]
    fn what_is_cut_off_or_too_large_is_refused() {
        let options = RowOptions { max_unpacked_bytes: 1000, ..RowOptions::default() };
        let bomb = gzip(&[b' '; 100_000]);
        assert!(plain(&bomb, &options).unwrap_err().contains("more than 1000 bytes"));
        let whole = gzip(&[b'x'; 900]);
        assert!(plain(&whole[..whole.len() - 9], &options).unwrap_err().contains("gzip"));
        assert!(plain(b"\xff\xfe{\0\0", &options).unwrap_err().contains("UTF-16"));
        assert!(plain(b"\xff\xfe{\0\x3d\xd8x\0", &options).unwrap_err().contains("surrogates"));
    }
}
