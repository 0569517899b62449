//! Where the rows of a shard lie in its file: the offsets of each record batch's columns.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use arrow_ipc::reader::read_footer_length;
use arrow_ipc::{root_as_footer, root_as_message};

use crate::row_error::ReadError;

/// Buffers of a record batch: validity, offsets, … of each column in turn, as the Arrow format
/// orders them.
mod buffers {
    pub(super) const INPUT_IDS: (usize, usize) = (1, 3);
    pub(super) const SUPERVISED: (usize, usize) = (5, 7);
    pub(super) const IMAGE_STARTS: (usize, usize) = (9, 11);
    pub(super) const IMAGE_HASHES: (usize, usize) = (13, 15);
    pub(super) const IMAGES: (usize, usize, usize) = (17, 19, 20);
    pub(super) const CONVERSATIONS: (usize, usize) = (22, 23);
    pub(super) const LOCATION: (usize, usize) = (25, 26);
    pub(super) const COUNT: usize = 27;
}

/// A column of lists: where the values begin in the file, and which are whose.
#[derive(Debug)]
pub(super) struct Lists {
    start: u64,
    /// A row's values are from its entry to the next.
    offsets: Vec<u32>,
}

impl Lists {
    /// Which values are row `row`'s.
    pub(super) fn range(&self, row: usize) -> std::ops::Range<usize> {
        let at = |k: usize| self.offsets.get(k).copied().unwrap_or(0) as usize;
        at(row)..at(row + 1)
    }

    /// Reads the values `range`, each of `width` bytes.
    pub(super) fn read(
        &self,
        file: &File,
        range: std::ops::Range<usize>,
        width: usize,
    ) -> Result<Vec<u8>, ReadError> {
        read_at(file, self.start + (range.start * width) as u64, range.len() * width)
    }
}

/// One record batch.
#[derive(Debug)]
pub(super) struct BatchIndex {
    pub(super) input_ids: Lists,
    pub(super) supervised: Lists,
    pub(super) image_starts: Lists,
    pub(super) image_hashes: Lists,
    /// Which pictures a row has.
    pub(super) images: Lists,
    /// Which bytes a picture has.
    pub(super) pictures: Lists,
    pub(super) conversations: Lists,
    pub(super) location: Lists,
}

/// A shard's record batches, each read when it is first needed: some forty bytes a row.
#[derive(Debug)]
pub(super) struct ShardIndex {
    pub(super) file: File,
    /// First row of each batch, and the number of all rows.
    pub(super) starts: Vec<usize>,
    blocks: Vec<Block>,
    batches: Vec<OnceLock<Result<BatchIndex, ReadError>>>,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    offset: u64,
    metadata_bytes: usize,
}

impl ShardIndex {
    /// Reads the footer and the header of each record batch.
    pub(super) fn read(file: File) -> Result<Self, ReadError> {
        const TRAILER: u64 = 10;
        let length = file.metadata()?.len();
        let trailer_start = length.checked_sub(TRAILER).ok_or("not an Arrow file")?;
        let trailer = read_at(&file, trailer_start, TRAILER as usize)?;
        let trailer = <[u8; 10]>::try_from(trailer).map_err(|_| "not an Arrow file")?;
        let footer_bytes = read_footer_length(trailer).map_err(|e| e.to_string())?;
        let footer_start = trailer_start.checked_sub(footer_bytes as u64).ok_or("cut off")?;
        let footer = read_at(&file, footer_start, footer_bytes)?;
        let footer = root_as_footer(&footer).map_err(|e| e.to_string())?;
        let (mut blocks, mut starts) = (Vec::new(), vec![0]);
        for block in footer.recordBatches().into_iter().flatten() {
            let block = Block {
                offset: u64::try_from(block.offset()).map_err(|e| e.to_string())?,
                metadata_bytes: usize::try_from(block.metaDataLength())
                    .map_err(|e| e.to_string())?,
            };
            let (num_rows, _) = header(&file, block)?;
            starts.push(starts.last().copied().unwrap_or(0) + num_rows);
            blocks.push(block);
        }
        let batches = blocks.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { file, starts, blocks, batches })
    }

    /// The batch of row `row`, and its place in it.
    pub(super) fn batch(&self, row: usize) -> Result<(&BatchIndex, usize), ReadError> {
        let number = self.starts.partition_point(|&start| start <= row) - 1;
        let batch = self.batches.get(number).ok_or("the shard has no such row")?;
        let read = || BatchIndex::read(&self.file, self.blocks[number]);
        let index = batch.get_or_init(read).as_ref().map_err(ReadError::clone)?;
        Ok((index, row - self.starts[number]))
    }
}

impl BatchIndex {
    fn read(file: &File, block: Block) -> Result<Self, ReadError> {
        let (num_rows, places) = header(file, block)?;
        let offsets = |buffer: usize, count: usize| -> Result<Vec<u32>, ReadError> {
            let (start, length) = places[buffer];
            if length < (count + 1) as u64 * 4 {
                // The format lets the offsets of no values be left out.
                return if count == 0 { Ok(vec![0]) } else { Err("offsets are cut off".into()) };
            }
            Ok(numbers(&read_at(file, start, (count + 1) * 4)?))
        };
        let lists = |(of, values): (usize, usize)| -> Result<Lists, ReadError> {
            Ok(Lists { start: places[values].0, offsets: offsets(of, num_rows)? })
        };
        let (of_images, of_pictures, bytes) = buffers::IMAGES;
        let images = Lists { start: 0, offsets: offsets(of_images, num_rows)? };
        let num_pictures = images.offsets.last().copied().unwrap_or(0) as usize;
        let pictures =
            Lists { start: places[bytes].0, offsets: offsets(of_pictures, num_pictures)? };
        Ok(Self {
            input_ids: lists(buffers::INPUT_IDS)?,
            supervised: lists(buffers::SUPERVISED)?,
            image_starts: lists(buffers::IMAGE_STARTS)?,
            image_hashes: lists(buffers::IMAGE_HASHES)?,
            images,
            pictures,
            conversations: lists(buffers::CONVERSATIONS)?,
            location: lists(buffers::LOCATION)?,
        })
    }
}

/// Rows of a record batch, and start and length in the file of each of its buffers.
fn header(file: &File, block: Block) -> Result<(usize, Vec<(u64, u64)>), ReadError> {
    /// The marker of a message and its length come before it.
    const PREFIX: usize = 8;
    let bytes = read_at(file, block.offset, block.metadata_bytes)?;
    let message = bytes.get(PREFIX..).ok_or("a record batch without a header")?;
    let message = root_as_message(message).map_err(|e| e.to_string())?;
    let batch = message.header_as_record_batch().ok_or("expected a record batch")?;
    let body = block.offset + block.metadata_bytes as u64;
    let places: Vec<(u64, u64)> = batch
        .buffers()
        .into_iter()
        .flatten()
        .map(|buffer| (body + buffer.offset() as u64, buffer.length() as u64))
        .collect();
    if places.len() != buffers::COUNT || batch.compression().is_some() {
        return Err("a record batch of other columns than prepare-data writes".into());
    }
    Ok((usize::try_from(batch.length()).map_err(|e| e.to_string())?, places))
}

/// Little-endian numbers of four bytes.
pub(super) fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|&number| u32::from_le_bytes(number)).collect()
}

fn read_at(file: &File, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
    let end = file.metadata()?.len();
    if offset.saturating_add(length as u64) > end {
        return Err("the shard is cut off".into());
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}
