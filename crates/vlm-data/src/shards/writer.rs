//! Writes one shard.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, FixedSizeBinaryBuilder, Int32Builder, ListBuilder, StringBuilder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema};
use bytes::Bytes;

use super::columns::{self, HASH_BYTES};
use super::manifest::ShardEntry;
use crate::encoded_row::EncodedRow;
use crate::error::DataError;

/// A record batch ends after this many rows or bytes of images, so that only the content decides
/// where.
const MAX_BATCH_ROWS: usize = 256;
const MAX_BATCH_BYTES: usize = 32 << 20;

/// A row of a shard.
#[derive(Debug, Clone)]
pub(crate) struct ShardRow {
    pub(crate) encoded: EncodedRow,
    pub(crate) images: Vec<(Bytes, [u8; 32])>,
    pub(crate) conversations: String,
    pub(crate) location: String,
}

/// A shard that is being written to a temporary file.
pub(crate) struct ShardWriter {
    path: PathBuf,
    writer: FileWriter<BufWriter<Hashing>>,
    schema: Arc<Schema>,
    rows: Vec<ShardRow>,
    num_bytes_waiting: usize,
    num_rows: usize,
}

impl ShardWriter {
    /// Creates `path`, replacing an existing file.
    pub(crate) fn create(path: &Path) -> Result<Self, DataError> {
        let file = File::create(path).map_err(DataError::io(path, "write the shard"))?;
        let hashing = Hashing { file, hasher: blake3::Hasher::new(), num_bytes: 0 };
        let schema = Arc::new(schema());
        let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, hashing), &schema)
            .map_err(|e| failed(path, e))?;
        let rows = Vec::with_capacity(MAX_BATCH_ROWS);
        let path = path.to_owned();
        Ok(Self { path, writer, schema, rows, num_bytes_waiting: 0, num_rows: 0 })
    }

    pub(crate) fn push(&mut self, row: ShardRow) -> Result<(), DataError> {
        self.num_bytes_waiting += row.images.iter().map(|(bytes, _)| bytes.len()).sum::<usize>();
        self.num_rows += 1;
        self.rows.push(row);
        if self.rows.len() == MAX_BATCH_ROWS || self.num_bytes_waiting >= MAX_BATCH_BYTES {
            self.write_batch()?;
        }
        Ok(())
    }

    /// Writes the remaining rows and flushes the file to the disk. It is then complete under its
    /// temporary name.
    pub(crate) fn finish(mut self, name: &str) -> Result<ShardEntry, DataError> {
        self.write_batch()?;
        self.writer.finish().map_err(|e| failed(&self.path, e))?;
        let failed_io = |path: &Path| DataError::io(path, "write the shard");
        let buffered = self.writer.into_inner().map_err(|e| failed(&self.path, e))?;
        let hashing = buffered.into_inner().map_err(|e| failed_io(&self.path)(e.into_error()))?;
        hashing.file.sync_all().map_err(failed_io(&self.path))?;
        Ok(ShardEntry {
            file: name.to_owned(),
            num_rows: self.num_rows,
            num_bytes: hashing.num_bytes,
            blake3: hashing.hasher.finalize().to_hex().to_string(),
        })
    }

    fn write_batch(&mut self) -> Result<(), DataError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.num_bytes_waiting = 0;
        RecordBatch::try_new(Arc::clone(&self.schema), arrays(&rows)?)
            .and_then(|batch| self.writer.write(&batch))
            .map_err(|e| failed(&self.path, e))
    }
}

fn failed(path: &Path, error: ArrowError) -> DataError {
    match error {
        ArrowError::IoError(_, source) => DataError::io(path, "write the shard")(source),
        other => DataError::content(path, format!("cannot write the shard: {other}")),
    }
}

fn schema() -> Schema {
    let list = |name: &str, item: DataType| {
        Field::new(name, DataType::List(Arc::new(Field::new("item", item, true))), false)
    };
    Schema::new(vec![
        list(columns::INPUT_IDS, DataType::Int32),
        list(columns::SUPERVISED, DataType::Int32),
        list(columns::IMAGE_STARTS, DataType::Int32),
        list(columns::IMAGE_HASHES, DataType::FixedSizeBinary(HASH_BYTES as i32)),
        list(columns::IMAGES, DataType::Binary),
        Field::new(columns::CONVERSATIONS, DataType::Utf8, false),
        Field::new(columns::LOCATION, DataType::Utf8, false),
    ])
}

fn arrays(rows: &[ShardRow]) -> Result<Vec<ArrayRef>, DataError> {
    let mut ids = ListBuilder::new(Int32Builder::new());
    let mut supervised = ListBuilder::new(Int32Builder::new());
    let mut starts = ListBuilder::new(Int32Builder::new());
    let mut hashes = ListBuilder::new(FixedSizeBinaryBuilder::new(HASH_BYTES as i32));
    let mut images = ListBuilder::new(BinaryBuilder::new());
    let (mut conversations, mut locations) = (StringBuilder::new(), StringBuilder::new());
    for row in rows {
        // Ids and positions in a row are far below 2³¹: a vocabulary or row of that size would not
        // fit into memory.
        ids.values().append_values_from(row.encoded.input_ids.iter().map(|&id| id as i32));
        ids.append(true);
        let spans = row.encoded.supervised.iter().flat_map(|span| [span.start, span.end]);
        supervised.values().append_values_from(spans.map(|place| place as i32));
        supervised.append(true);
        let places = row.encoded.image_starts.iter().map(|&start| start as i32);
        starts.values().append_values_from(places);
        starts.append(true);
        for (bytes, hash) in &row.images {
            hashes
                .values()
                .append_value(hash)
                .map_err(|e| DataError::Settings(format!("a hash of another length: {e}")))?;
            images.values().append_value(bytes);
        }
        hashes.append(true);
        images.append(true);
        conversations.append_value(&row.conversations);
        locations.append_value(&row.location);
    }
    Ok(vec![
        Arc::new(ids.finish()),
        Arc::new(supervised.finish()),
        Arc::new(starts.finish()),
        Arc::new(hashes.finish()),
        Arc::new(images.finish()),
        Arc::new(conversations.finish()),
        Arc::new(locations.finish()),
    ])
}

trait AppendFrom {
    fn append_values_from(&mut self, values: impl Iterator<Item = i32>);
}

impl AppendFrom for Int32Builder {
    fn append_values_from(&mut self, values: impl Iterator<Item = i32>) {
        values.for_each(|value| self.append_value(value));
    }
}

/// A file that hashes what is written to it.
struct Hashing {
    file: File,
    hasher: blake3::Hasher,
    num_bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.num_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
