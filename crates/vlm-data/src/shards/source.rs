//! The rows of a prepared data set.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use vlm_display::count;

use super::columns::HASH_BYTES;
use super::index::{BatchIndex, Lists, ShardIndex, numbers};
use super::manifest::{MANIFEST_FILE, Manifest};
use crate::arrow::batches::Batches;
use crate::encoded_row::EncodedRow;
use crate::error::DataError;
use crate::reject::Reject;
use crate::row_error::{ReadError, RowError};
use crate::rows::{Row, RowImage};
use crate::source::{Encoding, PreparedRow, RowSource};

/// A folder that `cargo xtask prepare-data` made.
#[derive(Debug)]
pub struct ShardSource {
    dir: PathBuf,
    manifest: Manifest,
    /// First row of each shard, then the number of all rows.
    starts: Vec<usize>,
    shards: Vec<OnceLock<Result<ShardIndex, ReadError>>>,
}

/// Position of a row: its file, its record batch, and its index in the batch.
struct RowPosition<'a> {
    file: &'a Batches,
    batch: &'a BatchIndex,
    row: usize,
}

impl ShardSource {
    /// Opens the folder `dir`. Reads its manifest, but no row.
    ///
    /// # Errors
    /// A manifest that cannot be read; no rows; a shard that is missing or of another size.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let manifest = Manifest::read(dir)?;
        if manifest.num_rows == 0 {
            return Err(DataError::content(dir, "this data set has no rows: all were rejected"));
        }
        let mut starts = vec![0];
        for shard in &manifest.shards {
            let path = dir.join(&shard.file);
            let found = path.metadata().map_err(DataError::io(&path, "open the shard"))?.len();
            if found != shard.num_bytes {
                return Err(DataError::content(
                    &path,
                    format!("expected {} bytes, found {found}: copy it again", shard.num_bytes),
                ));
            }
            let start: usize = starts.last().copied().unwrap_or(0);
            // The numbers of a damaged manifest must not size any memory.
            let end = start.checked_add(shard.num_rows);
            let is_possible = shard.num_rows as u64 <= shard.num_bytes;
            let end = end.filter(|_| is_possible).ok_or_else(|| {
                let problem = format!(
                    "{MANIFEST_FILE} claims {} in {}; prepare the rows again",
                    count(shard.num_rows, "row"),
                    count(shard.num_bytes, "byte")
                );
                DataError::content(&path, problem)
            })?;
            starts.push(end);
        }
        if starts.last() != Some(&manifest.num_rows) {
            return Err(DataError::content(
                dir,
                format!(
                    "{MANIFEST_FILE} has {}, but its shards have {}; prepare the rows again",
                    count(manifest.num_rows, "row"),
                    starts.last().copied().unwrap_or(0)
                ),
            ));
        }
        let shards = manifest.shards.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { dir: dir.to_owned(), manifest, starts, shards })
    }

    fn place(&self, index: usize) -> Result<RowPosition<'_>, RowError> {
        if index >= self.manifest.num_rows {
            return Err(Reject::no_such_row(index, self.manifest.num_rows).into());
        }
        let number = self.starts.partition_point(|&start| start <= index) - 1;
        // The file existed when the data set was opened, so failing to open it is not a fault of
        // the row.
        let open = || {
            let file = File::open(self.shard_path(number)).map_err(Arc::new);
            ShardIndex::read(file.map_err(ReadError::System)?)
        };
        let shard = self.shards[number].get_or_init(open).as_ref();
        let place = shard.map_err(ReadError::clone).and_then(|shard| {
            let (batch, row) = shard.batch(index - self.starts[number])?;
            Ok(RowPosition { file: &shard.file, batch, row })
        });
        place.map_err(|e| self.unreadable(index, e))
    }

    fn shard_path(&self, number: usize) -> PathBuf {
        self.dir.join(&self.manifest.shards[number].file)
    }

    /// Why row `index` cannot be read.
    fn unreadable(&self, index: usize, error: ReadError) -> RowError {
        let path = self.shard_path(self.starts.partition_point(|&start| start <= index) - 1);
        error.into_row_error(&path, |problem| {
            Reject::invalid_row(format!("{}: {problem}", path.display()))
        })
    }
}

impl RowPosition<'_> {
    fn encoded(&self) -> Result<EncodedRow, ReadError> {
        let RowPosition { file, batch, row } = *self;
        let read = |lists: &Lists| -> Result<Vec<u32>, ReadError> {
            Ok(numbers(&lists.read(file, lists.range(row), 4)?))
        };
        let spans = read(&batch.supervised)?;
        let places = |numbers: Vec<u32>| numbers.into_iter().map(|n| n as usize).collect();
        Ok(EncodedRow {
            input_ids: read(&batch.input_ids)?.into_iter().map(i64::from).collect(),
            supervised: spans
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&[start, end]| start as usize..end as usize)
                .collect(),
            image_starts: places(read(&batch.image_starts)?),
        })
    }

    fn images(&self) -> Result<Vec<RowImage>, ReadError> {
        let RowPosition { file, batch, row } = *self;
        let range = batch.image_hashes.range(row);
        let hashes = batch.image_hashes.read(file, range, HASH_BYTES)?;
        let image = |(k, hash): (usize, &[u8; HASH_BYTES])| RowImage {
            name: format!("images[{k}]"),
            bytes: None,
            hash: Some(*hash),
        };
        Ok(hashes.as_chunks::<HASH_BYTES>().0.iter().enumerate().map(image).collect())
    }

    fn image_bytes(&self, k: usize) -> Result<Vec<u8>, ReadError> {
        let RowPosition { file, batch, row } = *self;
        let image = batch.images.range(row).nth(k).ok_or("the row has no such image")?;
        batch.image_bytes.read(file, batch.image_bytes.range(image), 1)
    }

    fn text(&self, column: &Lists) -> Result<String, ReadError> {
        let bytes = column.read(self.file, column.range(self.row), 1)?;
        String::from_utf8(bytes).map_err(|e| e.to_string().into())
    }
}

impl RowSource for ShardSource {
    fn len(&self) -> usize {
        self.manifest.num_rows
    }

    fn row(&self, index: usize) -> Result<Row, RowError> {
        let place = self.place(index)?;
        let unreadable = |e| self.unreadable(index, e);
        let text = place.text(&place.batch.conversations).map_err(unreadable)?;
        let turns = Row::turns_from_json(&text)?;
        Ok(Row { turns, images: place.images().map_err(unreadable)? })
    }

    fn prepared_row(&self, index: usize) -> Result<Option<PreparedRow>, RowError> {
        let place = self.place(index)?;
        let unreadable = |e| self.unreadable(index, e);
        let encoded = place.encoded().map_err(unreadable)?;
        Ok(Some(PreparedRow { encoded, images: place.images().map_err(unreadable)? }))
    }

    fn image_bytes(&self, index: usize, k: usize, _: &RowImage) -> Result<Bytes, RowError> {
        let bytes = self.place(index)?.image_bytes(k).map_err(|e| self.unreadable(index, e))?;
        Ok(bytes.into())
    }

    fn locate(&self, index: usize) -> String {
        let location = self.place(index).ok().and_then(|p| p.text(&p.batch.location).ok());
        location.unwrap_or_else(|| format!("{}[{index}]", self.dir.display()))
    }

    fn describe(&self) -> Vec<String> {
        let rows = count(self.manifest.num_rows, "row");
        let shards = count(self.manifest.shards.len(), "shard");
        vec![format!("{}: prepared data, {rows} in {shards}", self.dir.display())]
    }

    fn num_tokens(&self, index: usize) -> Option<usize> {
        let RowPosition { batch, row, .. } = self.place(index).ok()?;
        Some(batch.input_ids.range(row).len())
    }

    fn check_encoding(&self, wanted: &Encoding<'_>) -> Result<(), DataError> {
        self.manifest.check(&self.dir, wanted)
    }
}
