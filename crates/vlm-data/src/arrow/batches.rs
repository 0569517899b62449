//! Finds the record batches of an Arrow file or stream, and reads their buffers.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::read_footer_length;
use arrow_ipc::{CompressionType, Endianness, root_as_footer, root_as_message};
use arrow_schema::Schema;

use crate::caught::caught;
use crate::limits::{MAX_BUFFER_BYTES, MAX_HEADER_BYTES, is_bomb};
use crate::recent_cache::RecentCache;
use crate::row_error::ReadError;

/// The record batches of a file.
#[derive(Debug)]
pub(crate) struct Batches {
    file: File,
    length: u64,
    /// First row of each batch, then the number of all rows.
    starts: Vec<usize>,
    blocks: Vec<Block>,
    headers: Vec<OnceLock<Result<Header, ReadError>>>,
    /// Decompressed buffers.
    unpacked: RecentCache<Key, Vec<u8>>,
}

/// Numbers of the batch and of the buffer in it.
pub(crate) type Key = (usize, usize);

#[derive(Debug, Clone, Copy)]
struct Block {
    /// Position of the header's marker in the file.
    offset: u64,
    /// Length of the marker and the header.
    header_bytes: u64,
}

/// The content of a batch's header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) number: usize,
    /// Number of values of each node.
    pub(crate) nodes: Vec<u64>,
    /// Position in the file and length of each buffer.
    pub(crate) buffers: Vec<(u64, u64)>,
    pub(crate) compression: Option<CompressionType>,
}

const MARKER: [u8; 4] = [0xff; 4];
/// Bytes of a message's marker and length.
const PREFIX: u64 = 8;

impl Batches {
    /// Finds the batches of a file or a stream; the first bytes tell which of the two it is.
    pub(crate) fn open(file: File) -> Result<(Self, Schema), ReadError> {
        let length = file.metadata()?.len();
        let mut this = Self {
            file,
            length,
            starts: vec![0],
            blocks: Vec::new(),
            headers: Vec::new(),
            unpacked: RecentCache::new(Vec::len),
        };
        let is_stream = this.read(0, 4)? == MARKER;
        let schema = if is_stream { this.walk_stream()? } else { this.read_footer()? };
        this.headers = this.blocks.iter().map(|_| OnceLock::new()).collect();
        Ok((this, schema))
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    pub(crate) fn num_batches(&self) -> usize {
        self.blocks.len()
    }

    /// The header of the batch that holds row `index`, which must exist, and the row's index in the
    /// batch.
    pub(crate) fn locate(&self, index: usize) -> Result<(&Header, u64), ReadError> {
        let number = self.starts.partition_point(|&start| start <= index) - 1;
        let read = || self.header(number);
        let header = self.headers[number].get_or_init(read).as_ref().map_err(ReadError::clone)?;
        Ok((header, (index - self.starts[number]) as u64))
    }

    /// Size of the file in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    fn read_footer(&mut self) -> Result<Schema, ReadError> {
        const TRAILER: u64 = 10;
        let trailer_start = self.length.checked_sub(TRAILER).ok_or("it is truncated")?;
        let trailer = self.read(trailer_start, TRAILER)?;
        let trailer = <[u8; 10]>::try_from(trailer).map_err(|_| "it is truncated")?;
        let footer_bytes = read_footer_length(trailer).map_err(|e| e.to_string())? as u64;
        let footer_start = trailer_start.checked_sub(footer_bytes).ok_or("it is truncated")?;
        let footer = self.read(footer_start, footer_bytes)?;
        let footer = root_as_footer(&footer).map_err(|e| e.to_string())?;
        let schema = footer.schema().ok_or("its footer has no schema")?;
        let schema = parse_schema(schema)?;
        for block in footer.recordBatches().into_iter().flatten() {
            let offset = u64::try_from(block.offset()).map_err(|e| e.to_string())?;
            let header_bytes = u64::try_from(block.metaDataLength()).map_err(|e| e.to_string())?;
            self.push(Block { offset, header_bytes })?;
        }
        Ok(schema)
    }

    fn walk_stream(&mut self) -> Result<Schema, ReadError> {
        let mut schema = None;
        let mut offset = 0;
        while offset + PREFIX <= self.length {
            let prefix = self.read(offset, PREFIX)?;
            let length = [prefix[4], prefix[5], prefix[6], prefix[7]];
            let length = u64::from(u32::from_le_bytes(length));
            if prefix[..4] != MARKER {
                return Err(format!("expected a message at byte {offset}").into());
            }
            if length == 0 {
                break;
            }
            let block = Block { offset, header_bytes: PREFIX + length };
            let bytes = self.header_bytes(block)?;
            let message = root_as_message(&bytes).map_err(|e| e.to_string())?;
            let body = u64::try_from(message.bodyLength()).map_err(|e| e.to_string())?;
            if let Some(found) = message.header_as_schema() {
                schema = Some(parse_schema(found)?);
            } else if message.header_as_record_batch().is_some() {
                self.push(block)?;
            }
            let end = offset.checked_add(block.header_bytes).and_then(|end| end.checked_add(body));
            offset = end.filter(|&end| end <= self.length).ok_or("it is truncated")?;
        }
        schema.ok_or_else(|| "it has no schema".into())
    }

    fn push(&mut self, block: Block) -> Result<(), ReadError> {
        let bytes = self.header_bytes(block)?;
        let message = root_as_message(&bytes).map_err(|e| e.to_string())?;
        let batch = message.header_as_record_batch().ok_or("expected a record batch")?;
        let num_rows = u64::try_from(batch.length()).map_err(|e| e.to_string())?;
        // Every row takes at least one bit, and every column has as many values as there are rows.
        let of_column =
            batch.nodes().and_then(|nodes| nodes.iter().next().map(|node| node.length()));
        let is_same = of_column.is_none_or(|length| u64::try_from(length) == Ok(num_rows));
        if num_rows > self.length.saturating_mul(8) || !is_same {
            return Err(format!("a record batch claims to have {num_rows} rows").into());
        }
        self.starts.push(self.num_rows() + num_rows as usize);
        self.blocks.push(block);
        Ok(())
    }

    /// The flatbuffer after a message's marker and length.
    fn header_bytes(&self, block: Block) -> Result<Vec<u8>, ReadError> {
        if block.header_bytes > MAX_HEADER_BYTES {
            return Err(
                format!("a header of {} bytes, which is too long", block.header_bytes).into()
            );
        }
        let length = block.header_bytes.checked_sub(PREFIX).ok_or("a header is truncated")?;
        self.read(block.offset.checked_add(PREFIX).ok_or("an implausible position")?, length)
    }

    fn header(&self, number: usize) -> Result<Header, ReadError> {
        let block = self.blocks[number];
        let bytes = self.header_bytes(block)?;
        let message = root_as_message(&bytes).map_err(|e| e.to_string())?;
        let batch = message.header_as_record_batch().ok_or("expected a record batch")?;
        let body = block.offset + block.header_bytes;
        let place = |buffer: &arrow_ipc::Buffer| {
            let offset =
                body.checked_add_signed(buffer.offset()).ok_or("an implausible position")?;
            let length = u64::try_from(buffer.length()).map_err(|e| e.to_string())?;
            Ok::<_, ReadError>((offset, length))
        };
        Ok(Header {
            number,
            nodes: batch
                .nodes()
                .into_iter()
                .flatten()
                .map(|node| u64::try_from(node.length()).unwrap_or(0))
                .collect(),
            buffers: batch
                .buffers()
                .into_iter()
                .flatten()
                .map(place)
                .collect::<Result<_, ReadError>>()?,
            compression: batch.compression().map(|compression| compression.codec()),
        })
    }

    /// Reads `length` bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, ReadError> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err("it is truncated".into());
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// A compressed buffer after decompression.
    pub(super) fn unpacked(
        &self,
        key: Key,
        (offset, length): (u64, u64),
        codec: CompressionType,
    ) -> Result<Arc<Vec<u8>>, ReadError> {
        self.unpacked.get_or_make(key, || unpack(&self.read(offset, length)?, codec))
    }
}

fn unpack(packed: &[u8], codec: CompressionType) -> Result<Vec<u8>, ReadError> {
    const NOT_PACKED: i64 = -1;
    let Some((length, content)) = packed.split_first_chunk::<8>() else {
        return Ok(Vec::new());
    };
    let length = i64::from_le_bytes(*length);
    if length == NOT_PACKED {
        return Ok(content.to_vec());
    }
    let packed_bytes = content.len() as u64;
    let length = u64::try_from(length).ok();
    let length =
        length.filter(|&length| length <= MAX_BUFFER_BYTES && !is_bomb(packed_bytes, length));
    let length = length.ok_or("a compressed buffer with an implausible length")?;
    let mut reader: Box<dyn Read + '_> = match codec {
        CompressionType::ZSTD => Box::new(zstd::stream::read::Decoder::new(content)?),
        CompressionType::LZ4_FRAME => Box::new(lz4_flex::frame::FrameDecoder::new(content)),
        _ => return Err("an unknown compression".into()),
    };
    let mut bytes = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err("a compressed buffer is truncated".into());
    }
    Ok(bytes)
}

fn parse_schema(schema: arrow_ipc::Schema<'_>) -> Result<Schema, ReadError> {
    if schema.endianness() != Endianness::Little {
        return Err("it was written on a big-endian machine".into());
    }
    // The conversion panics on types that it does not know.
    caught(|| try_fb_to_schema(schema))
        .and_then(|parsed| parsed.map_err(|e| e.to_string()))
        .map_err(|problem| format!("its schema: {problem}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_buffers_that_claim_too_much_are_refused_before_memory_is_allocated() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let length = (MAX_HEADER_BYTES as u32).to_le_bytes();
        std::fs::write(file.path(), [&MARKER[..], &length].concat()).unwrap();
        let error = Batches::open(File::open(file.path()).unwrap()).unwrap_err();
        let message = format!("{error:?}");
        assert!(message.contains("a header of 67108872 bytes, which is too long"), "{message}");

        for claimed in [MAX_BUFFER_BYTES + 1, MAX_BUFFER_BYTES, u64::MAX / 2] {
            let packed = [&claimed.to_le_bytes()[..], &[0; 16]].concat();
            let message = format!("{:?}", unpack(&packed, CompressionType::ZSTD).unwrap_err());
            assert!(message.contains("an implausible length"), "{claimed}: {message}");
        }
    }
}
