//! Finds the rows of a shard in its file: the offsets of the columns of each record batch.

use std::fs::File;
use std::sync::OnceLock;

use crate::arrow::batches::{Batches, Header};
use crate::row_error::ReadError;

/// Indices of a record batch's buffers: validity, offsets, … of each column, in the order of the
/// Arrow format.
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

/// A column of lists: the position of its values in the file, and which values belong to which row.
#[derive(Debug)]
pub(super) struct Lists {
    start: u64,
    /// The values of a row are from its entry up to the next entry.
    offsets: Vec<u32>,
}

impl Lists {
    /// Indices of the values of row `row`.
    pub(super) fn range(&self, row: usize) -> std::ops::Range<usize> {
        let at = |k: usize| self.offsets.get(k).copied().unwrap_or(0) as usize;
        at(row)..at(row + 1)
    }

    /// Reads the values in `range`, each of `width` bytes.
    pub(super) fn read(
        &self,
        file: &Batches,
        range: std::ops::Range<usize>,
        width: usize,
    ) -> Result<Vec<u8>, ReadError> {
        file.read(self.start + (range.start * width) as u64, (range.len() * width) as u64)
    }
}

/// The columns of one record batch.
#[derive(Debug)]
pub(super) struct BatchIndex {
    pub(super) input_ids: Lists,
    pub(super) supervised: Lists,
    pub(super) image_starts: Lists,
    pub(super) image_hashes: Lists,
    /// Indices of the images of each row.
    pub(super) images: Lists,
    /// Bytes of each image.
    pub(super) image_bytes: Lists,
    pub(super) conversations: Lists,
    pub(super) location: Lists,
}

/// The record batches of a shard, each read when it is first needed: about forty bytes per row.
#[derive(Debug)]
pub(super) struct ShardIndex {
    pub(super) file: Batches,
    batches: Vec<OnceLock<Result<BatchIndex, ReadError>>>,
}

impl ShardIndex {
    /// Reads the footer and the header of each record batch.
    pub(super) fn read(file: File) -> Result<Self, ReadError> {
        let (file, _) = Batches::open(file)?;
        let batches = (0..file.num_batches()).map(|_| OnceLock::new()).collect();
        Ok(Self { file, batches })
    }

    /// The batch of row `row`, and the row's index in it.
    pub(super) fn batch(&self, row: usize) -> Result<(&BatchIndex, usize), ReadError> {
        if row >= self.file.num_rows() {
            return Err("the shard has no such row".into());
        }
        let (header, row) = self.file.locate(row)?;
        let read = || BatchIndex::read(&self.file, header);
        let index = self.batches[header.number].get_or_init(read);
        Ok((index.as_ref().map_err(ReadError::clone)?, row as usize))
    }
}

impl BatchIndex {
    fn read(file: &Batches, header: &Header) -> Result<Self, ReadError> {
        let places = &header.buffers;
        if places.len() != buffers::COUNT || header.compression.is_some() {
            return Err("a record batch with other columns than prepare-data writes".into());
        }
        let num_rows = header.nodes.first().copied().unwrap_or(0) as usize;
        let offsets = |buffer: usize, count: usize| -> Result<Vec<u32>, ReadError> {
            let (start, length) = places[buffer];
            if length < (count + 1) as u64 * 4 {
                // The format allows leaving out the offsets of a column without values.
                return if count == 0 { Ok(vec![0]) } else { Err("offsets are missing".into()) };
            }
            Ok(numbers(&file.read(start, (count + 1) as u64 * 4)?))
        };
        let lists = |(of, values): (usize, usize)| -> Result<Lists, ReadError> {
            Ok(Lists { start: places[values].0, offsets: offsets(of, num_rows)? })
        };
        let (of_images, of_image_bytes, bytes) = buffers::IMAGES;
        let images = Lists { start: 0, offsets: offsets(of_images, num_rows)? };
        let num_image_bytes = images.offsets.last().copied().unwrap_or(0) as usize;
        let image_bytes =
            Lists { start: places[bytes].0, offsets: offsets(of_image_bytes, num_image_bytes)? };
        Ok(Self {
            input_ids: lists(buffers::INPUT_IDS)?,
            supervised: lists(buffers::SUPERVISED)?,
            image_starts: lists(buffers::IMAGE_STARTS)?,
            image_hashes: lists(buffers::IMAGE_HASHES)?,
            images,
            image_bytes,
            conversations: lists(buffers::CONVERSATIONS)?,
            location: lists(buffers::LOCATION)?,
        })
    }
}

/// Decodes little-endian numbers of four bytes.
pub(super) fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|&number| u32::from_le_bytes(number)).collect()
}
