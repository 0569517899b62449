//! Finds the pages of a Parquet file and the rows that begin in each, and decodes them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::column::page::{PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use vlm_display::count;

use super::footer::{is_whole_structure, page_sizes, schema_depth};
use super::levels::{Levels, PageRows};
use crate::caught::caught;
use crate::error::DataError;
use crate::limits::{
    MAX_HEADER_BYTES, MAX_PAGE_VALUES, MAX_ROWS_A_BYTE, MAX_SCHEMA_DEPTH, is_bomb,
};
use crate::row_error::ReadError;

/// A leaf column, which has any number of values per row.
#[derive(Debug)]
pub(super) struct Column {
    leaf: usize,
    name: String,
    is_list: bool,
}

impl Column {
    pub(super) fn new(leaf: usize, descriptor: &ColumnDescriptor) -> Self {
        let root = descriptor.path().parts().first().cloned().unwrap_or_default();
        Self { leaf, name: root, is_list: descriptor.max_rep_level() > 0 }
    }

    pub(super) fn leaf(&self) -> usize {
        self.leaf
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// The result of `read`. A panic of the crate `parquet` on a damaged file becomes an error.
fn guarded<T>(read: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    caught(read).unwrap_or_else(|message| {
        Err(ParquetError::General(format!("the file is damaged ({message})")))
    })
}

/// Position of the page in which a row begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct PagePosition {
    pub(super) group: usize,
    /// Index among the data pages of the column in the row group.
    pub(super) number: usize,
    pub(super) row_in_page: usize,
}

/// The pages of one column in one row group.
#[derive(Debug, Default)]
struct ChunkPages {
    locations: Vec<PageLocation>,
    /// Number of rows that begin before each page, then the number of all rows.
    starts: Vec<usize>,
    /// Whether the page begins with more values of the previous row.
    continues: Vec<bool>,
}

/// A Parquet file.
#[derive(Debug)]
pub(super) struct Pages {
    /// Identifies the file in the page cache.
    id: usize,
    reader: Arc<FileAt>,
    metadata: ParquetMetaData,
    /// First row of each row group, then the number of all rows.
    group_starts: Vec<usize>,
    /// By row group and leaf column; found when first needed.
    chunks: Vec<Vec<OnceLock<Result<ChunkPages, ReadError>>>>,
}

impl Pages {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        static NEXT_ID: AtomicUsize = AtomicUsize::new(0);
        let file = File::open(path).map_err(DataError::io(path, "open the rows"))?;
        let length = file.metadata().map_err(DataError::io(path, "open the rows"))?.len();
        let reader = Arc::new(FileAt { file, length, header_starts: None });
        let wrong = |problem: String| {
            DataError::content(
                path,
                format!("cannot be read as Parquet: {problem}; fetch it again"),
            )
        };
        let depth =
            schema_depth(&reader.file, length).map_err(DataError::io(path, "read the rows"))?;
        match depth {
            None => return Err(wrong("its footer is damaged".into())),
            Some(depth) if depth > MAX_SCHEMA_DEPTH => {
                return Err(wrong(format!(
                    "its schema is nested {depth} deep; the limit is {MAX_SCHEMA_DEPTH}"
                )));
            }
            Some(_) => {}
        }
        let metadata = guarded(|| ParquetMetaDataReader::new().parse_and_finish(reader.as_ref()))
            .map_err(|e| wrong(e.to_string()))?;
        let mut group_starts = vec![0_usize];
        let most = length.saturating_mul(MAX_ROWS_A_BYTE);
        for group in metadata.row_groups() {
            let start = group_starts.last().copied().unwrap_or(0);
            let num_rows = u64::try_from(group.num_rows()).ok();
            let num_rows = num_rows.filter(|&rows| (start as u64).saturating_add(rows) <= most);
            let Some(num_rows) = num_rows else {
                return Err(wrong(format!(
                    "a row group claims to have {} rows, in a file of {length} bytes",
                    group.num_rows()
                )));
            };
            group_starts.push(start + num_rows as usize);
        }
        let num_leaves = metadata.file_metadata().schema_descr().num_columns();
        let group = || (0..num_leaves).map(|_| OnceLock::new()).collect();
        let chunks = metadata.row_groups().iter().map(|_| group()).collect();
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, reader, metadata, group_starts, chunks })
    }

    pub(super) fn id(&self) -> usize {
        self.id
    }

    /// Why leaf column `leaf` cannot be read, as far as the file's metadata tells.
    pub(super) fn problem(&self, leaf: usize) -> Option<String> {
        self.metadata.row_groups().iter().enumerate().find_map(|(number, group)| {
            let chunk = group.columns().get(leaf)?;
            if matches!(chunk.compression(), Compression::BROTLI(_) | Compression::LZO) {
                let codec = format!("{:?}", chunk.compression());
                return Some(format!(
                    "is compressed with {}, which is not supported; write the file with zstd, \
                     snappy, gzip or lz4",
                    codec.split('(').next().unwrap_or_default()
                ));
            }
            let (rows, values) = (group.num_rows(), chunk.num_values());
            (values < rows).then(|| {
                let (values, rows) = (count(values, "value"), count(rows, "row"));
                format!("has {values} for the {rows} of group {number}; fetch it again")
            })
        })
    }

    pub(super) fn schema(&self) -> &SchemaDescriptor {
        self.metadata.file_metadata().schema_descr()
    }

    pub(super) fn num_rows(&self) -> usize {
        self.group_starts.last().copied().unwrap_or(0)
    }

    /// The page in which row `index` begins; the row must exist.
    pub(super) fn locate(&self, column: &Column, index: usize) -> Result<PagePosition, ReadError> {
        let group = self.group_starts.partition_point(|&start| start <= index) - 1;
        let row = index - self.group_starts[group];
        let chunk = self.chunk(group, column)?;
        let number = chunk.starts.partition_point(|&start| start <= row).saturating_sub(1);
        if number >= chunk.locations.len() {
            let known = chunk.starts.last().copied().unwrap_or(0);
            let known = count(known, "value");
            let problem = format!("row group {group} holds {known}, not one for row {row}");
            return Err(problem.into());
        }
        Ok(PagePosition { group, number, row_in_page: row - chunk.starts[number] })
    }

    /// The rows that begin in the page at `place`.
    pub(super) fn decode(
        &self,
        column: &Column,
        place: PagePosition,
    ) -> Result<PageRows, ReadError> {
        let chunk = self.chunk(place.group, column)?;
        let mut last = place.number;
        while chunk.continues.get(last + 1) == Some(&true) {
            last += 1;
        }
        let num_rows = chunk.starts[place.number + 1] - chunk.starts[place.number];
        let read = || self.read(place.group, column, &chunk.locations, place.number..=last);
        Ok(guarded(read)?.rows(num_rows))
    }

    fn chunk(&self, group: usize, column: &Column) -> Result<&ChunkPages, ReadError> {
        let find = || guarded(|| self.find_pages(group, column)).map_err(ReadError::from);
        self.chunks[group][column.leaf].get_or_init(find).as_ref().map_err(ReadError::clone)
    }

    fn chunk_metadata(&self, group: usize, column: &Column) -> &ColumnChunkMetaData {
        self.metadata.row_group(group).column(column.leaf)
    }

    /// Reads the headers of a chunk's pages. They tell which rows begin in which page, except for
    /// lists in pages of the first version, which must be decoded once for it.
    fn find_pages(&self, group: usize, column: &Column) -> ParquetResult<ChunkPages> {
        let metadata = self.chunk_metadata(group, column);
        let num_rows = usize::try_from(self.metadata.row_group(group).num_rows())?;
        let file = self.reader.file.try_clone()?;
        let logged = Arc::new(FileAt {
            file,
            length: self.reader.length,
            header_starts: Some(Mutex::new(Vec::new())),
        });
        let mut walker = SerializedPageReader::new(Arc::clone(&logged), metadata, num_rows, None)?;
        let (mut offsets, mut counts) = (Vec::new(), Vec::new());
        while let Some(page) = walker.peek_next_page()? {
            logged.check_page(&page)?;
            if !page.is_dict {
                offsets.push(logged.last_header());
                counts.push(page.num_rows.or(page.num_levels.filter(|_| !column.is_list)));
            }
            walker.skip_next_page()?;
        }
        let (start, length) = metadata.byte_range();
        let ends = offsets.iter().skip(1).copied().chain([start + length]);
        let mut chunk = ChunkPages::default();
        for (&offset, end) in offsets.iter().zip(ends) {
            chunk.locations.push(PageLocation {
                offset: i64::try_from(offset)?,
                compressed_page_size: i32::try_from(end - offset)?,
                first_row_index: 0,
            });
        }
        chunk.starts.push(0);
        for (number, count) in counts.into_iter().enumerate() {
            let (count, continues) = match count {
                Some(count) => (count, false),
                None => {
                    let levels = self.read(group, column, &chunk.locations, number..=number)?;
                    let count = levels.repetition.iter().filter(|&&level| level == 0).count();
                    (count, levels.repetition.first().is_some_and(|&level| level != 0))
                }
            };
            let start = chunk.starts[number].saturating_add(count);
            chunk.starts.push(start);
            chunk.continues.push(continues);
        }
        match chunk.starts.last() {
            Some(&found) if found == num_rows => Ok(chunk),
            found => Err(ParquetError::General(format!(
                "the pages of row group {group} have {} rows, but the file's footer says {num_rows}",
                found.copied().unwrap_or(0)
            ))),
        }
    }

    /// Decodes consecutive pages.
    fn read(
        &self,
        group: usize,
        column: &Column,
        locations: &[PageLocation],
        numbers: std::ops::RangeInclusive<usize>,
    ) -> ParquetResult<Levels> {
        let metadata = self.chunk_metadata(group, column);
        // The reader finds the dictionary by the position of the first page.
        let skips_first = *numbers.start() > 0;
        let first = if skips_first { &locations[..1] } else { &[] };
        let wanted = [first, &locations[numbers]].concat();
        let mut reader =
            SerializedPageReader::new(Arc::clone(&self.reader), metadata, 0, Some(wanted))?;
        let mut pages = VecDeque::new();
        if reader.peek_next_page()?.is_some_and(|page| page.is_dict)
            && let Some(page) = reader.get_next_page()?
        {
            check_dictionary(page.num_values() as usize, page.buffer().len())?;
            pages.push_back(page);
        }
        if skips_first {
            reader.skip_next_page()?;
        }
        while let Some(page) = reader.get_next_page()? {
            pages.push_back(page);
        }
        Levels::decode(metadata.column_descr_ptr(), pages)
    }
}

/// Checks the number of values of a dictionary, which sizes a buffer, with the length of its page.
fn check_dictionary(values: usize, bytes: usize) -> ParquetResult<()> {
    if values > MAX_PAGE_VALUES.min(bytes) {
        let problem = format!("a dictionary claims {values} values in {bytes} bytes");
        return Err(ParquetError::General(problem));
    }
    Ok(())
}

/// Reads by position without moving the file's cursor, so that threads do not disturb each other.
#[derive(Debug)]
struct FileAt {
    file: File,
    length: u64,
    /// Positions at which reading began, which are those of page headers, when the pages are looked
    /// for; the headers are checked then.
    header_starts: Option<Mutex<Vec<u64>>>,
}

impl FileAt {
    fn last_header(&self) -> u64 {
        let starts = self.header_starts.as_ref().map(|starts| starts.lock());
        let last = starts
            .and_then(|starts| starts.unwrap_or_else(PoisonError::into_inner).last().copied());
        last.unwrap_or(0)
    }

    /// Checks the header of the page at byte `start`, before the crate `parquet` reads it.
    fn check_header(&self, start: u64) -> ParquetResult<()> {
        // A header of more than 512 bytes holds long values: the smallest and the largest one.
        for most in [512, 1 << 16, MAX_HEADER_BYTES] {
            let length = self.length.saturating_sub(start).min(most);
            let mut header = vec![0; length as usize];
            self.file.read_exact_at(&mut header, start)?;
            if is_whole_structure(&header) {
                return Ok(());
            }
            if length < most {
                break;
            }
        }
        Err(ParquetError::General(format!("the page at byte {start} has a damaged header")))
    }

    /// Checks the page whose header was read last, before memory is allocated for its content.
    fn check_page(&self, page: &PageMetadata) -> ParquetResult<()> {
        let mut header = [0; 24];
        let start = self.last_header();
        let mut reader = ReadFrom { file: self.file.try_clone()?, offset: start };
        let mut length = 0;
        while length < header.len() {
            match reader.read(&mut header[length..])? {
                0 => break,
                read => length += read,
            }
        }
        let wrong = |problem: String| {
            Err(ParquetError::General(format!("the page at byte {start} {problem}")))
        };
        let Some((unpacked, packed)) = page_sizes(&header[..length]) else {
            return wrong("has no sizes in its header".into());
        };
        if is_bomb(packed, unpacked) {
            return wrong(format!("claims to unpack from {packed} to {unpacked} bytes"));
        }
        match page.num_levels {
            Some(values) if values > MAX_PAGE_VALUES => {
                wrong(format!("claims {values} values; the limit is {MAX_PAGE_VALUES}"))
            }
            _ => Ok(()),
        }
    }
}

impl Length for FileAt {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for FileAt {
    type T = BufReader<ReadFrom>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        if let Some(starts) = &self.header_starts {
            self.check_header(start)?;
            starts.lock().unwrap_or_else(PoisonError::into_inner).push(start);
        }
        let from = ReadFrom { file: self.file.try_clone()?, offset: start };
        Ok(BufReader::with_capacity(512, from))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        // The length comes from the file: one that goes beyond its end must not size a buffer.
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are beyond its end")));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// A reader of a file from an offset on.
#[derive(Debug)]
pub(super) struct ReadFrom {
    file: File,
    offset: u64,
}

impl Read for ReadFrom {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl From<ParquetError> for ReadError {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
                Ok(system) => Self::from(*system),
                Err(other) => Self::Content(other.to_string()),
            },
            other => Self::Content(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row_error::failing_file;

    #[test]
    fn a_header_with_a_list_beyond_the_end_of_the_file_is_refused_at_once() {
        let open = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            let length = bytes.len() as u64;
            FileAt { file: file.reopen().unwrap(), length, header_starts: Some(Mutex::default()) }
        };
        // Kind and sizes of a page, then an unknown list of 2³¹ − 1 numbers of 8 bytes.
        let header = [0x15, 0, 0x15, 200, 1, 0x15, 140, 1, 0x59, 0xf7, 0xff, 0xff, 0xff, 0xff, 7];
        let message = open(&header).get_read(0).unwrap_err().to_string();
        assert!(message.contains("the page at byte 0 has a damaged header"), "{message}");
        // A long text in place of the list.
        let text = [&header[..8], &[0x58, 0x80, 0x80, 0x08], &vec![b'x'; 1 << 17], &[0]].concat();
        assert!(open(&text).get_read(0).is_ok());
        assert!(open(&text[..text.len() - 1]).get_read(0).is_err());
    }

    #[test]
    fn pages_that_the_system_fails_to_read_do_not_reject_their_rows() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/parquet");
        let path = Path::new(golden).join("names.parquet");
        let whole = Pages::open(&path).unwrap();
        let length = whole.reader.length;
        let reader = Arc::new(FileAt { file: failing_file(), length, header_starts: None });
        let column = Column::new(0, &whole.schema().columns()[0].clone());
        assert!(whole.locate(&column, 0).is_ok());
        // Fails where the headers of the pages are looked for, and where a page is.
        let fresh = Pages { reader: Arc::clone(&reader), ..Pages::open(&path).unwrap() };
        assert!(matches!(fresh.locate(&column, 0), Err(ReadError::System(_))));
        let place = whole.locate(&column, 0).unwrap();
        let failing = Pages { reader, ..whole };
        assert!(matches!(failing.decode(&column, place), Err(ReadError::System(_))));
    }

    #[test]
    fn a_schema_that_would_overflow_the_stack_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), crate::parquet::footer::nested_file(100_000)).unwrap();
        let message = Pages::open(file.path()).unwrap_err().to_string();
        assert!(message.contains("nested 100000 deep; the limit is 128"), "{message}");
    }

    #[test]
    fn pages_that_claim_too_much_are_refused_before_memory_is_allocated() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // A data page of 2³⁰ bytes, 10 of them after compression; and one of 100 bytes.
        let bomb = [0x15, 0, 0x15, 0x80, 0x80, 0x80, 0x80, 8, 0x15, 20];
        let plain = [0x15, 0, 0x15, 200, 1, 0x15, 140, 1];
        let check = |header: &[u8], values: usize| {
            std::fs::write(file.path(), header).unwrap();
            let at = FileAt {
                file: File::open(file.path()).unwrap(),
                length: header.len() as u64,
                header_starts: Some(Mutex::new(vec![0])),
            };
            let page = PageMetadata { num_rows: None, num_levels: Some(values), is_dict: false };
            at.check_page(&page).map_err(|e| e.to_string())
        };
        assert_eq!(check(&plain, 9), Ok(()));
        assert!(check(&bomb, 9).unwrap_err().contains("claims to unpack from 10 to 1073741824"));
        let many = check(&plain, MAX_PAGE_VALUES + 1).unwrap_err();
        assert!(many.contains("claims 4194305 values"), "{many}");
        assert!(check(&plain[..3], 9).unwrap_err().contains("no sizes"));
        assert!(check_dictionary(10, 10).is_ok());
        for (values, bytes) in [(11, 10), (MAX_PAGE_VALUES + 1, 1 << 30)] {
            let error = check_dictionary(values, bytes).unwrap_err().to_string();
            assert!(error.contains(&format!("claims {values} values")), "{error}");
        }
    }
}
