//! Makes a prepared data set of any other: every row is checked and tokenized once, by all cores,
//! in bounded memory, and what cannot be trained on is told by name.
//!
//! A shard is made of a fixed range of the input's rows, so its bytes are the same whatever the
//! number of threads and however often the work was interrupted. A finished shard is kept:
//! `.progress` in the folder says which are, until the manifest does.

mod check;
mod pipeline;
mod progress;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use settings::{ImageStore, PrepareSettings};

use crate::error::DataError;
use crate::shards::{MANIFEST_FILE, Manifest, ShardWriter};
use crate::source::RowSource;
use crate::statistics::Statistics;
use check::RowChecker;
use pipeline::{Pipeline, RowOutcome};
use progress::{Identity, Progress, ShardRecord};

/// Prepares all rows of `source`, going on where an earlier call was interrupted. `progress` is
/// called with the rows done, those of earlier calls included, and their number.
///
/// # Errors
/// A folder that holds something else, or was begun with other settings or another input; a file
/// that cannot be written; a disk that fails under the input; more rejected rows than allowed, of which
/// the folder then holds the list.
pub fn prepare(
    source: &Arc<dyn RowSource>,
    settings: &PrepareSettings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Manifest, DataError> {
    if settings.rows_per_shard == 0 || settings.tokens_per_image == 0 || settings.max_seq_len < 2 {
        return Err(DataError::Settings(
            "rows-per-shard and the tokens of an image must be at least 1, max-seq-len at least 2"
                .into(),
        ));
    }
    if !(0.0..=1.0).contains(&settings.max_rejected_fraction) {
        return Err(DataError::Settings(format!(
            "max-rejected-fraction is {}; it must be from 0 to 1",
            settings.max_rejected_fraction
        )));
    }
    let identity = Identity::new(source.as_ref(), settings)?;
    let store = Progress::open(&settings.output, &identity)?;
    let num_rows = source.len();
    if let Some(manifest) = store.finished()? {
        progress(num_rows, num_rows);
        store.check_rejected(&manifest, settings.max_rejected_fraction)?;
        return Ok(manifest);
    }
    let num_shards = num_rows.div_ceil(settings.rows_per_shard);
    let (mut records, first) = store.finished_shards(num_shards)?;
    let first_row = (first * settings.rows_per_shard).min(num_rows);
    progress(first_row, num_rows);
    let checker = RowChecker {
        source: Arc::clone(source),
        tokenizer: Arc::clone(&settings.tokenizer),
        tokens_per_image: settings.tokens_per_image,
        max_seq_len: settings.max_seq_len,
        image_store: settings.image_store.clone(),
        limits: settings.limits,
    };
    let mut rows = Pipeline::start(checker, first_row..num_rows, settings.num_workers)?;
    for shard in first..num_shards {
        let start = shard * settings.rows_per_shard;
        let end = (start + settings.rows_per_shard).min(num_rows);
        records.push(write_shard(&store, shard, start..end, &mut rows, num_rows, progress)?);
    }
    drop(rows);
    let manifest = combine(identity.made_with, num_rows, records);
    store.write_rejected(&manifest)?;
    // Without its manifest the folder is not a data set yet: the same command with a higher limit
    // finishes it without checking a row again.
    store.check_rejected(&manifest, settings.max_rejected_fraction)?;
    store.finish(&manifest)?;
    Ok(manifest)
}

/// Checks, in a folder that was prepared, whether every shard has the bytes it was written with.
///
/// # Errors
/// The first shard that has not.
pub fn verify(manifest: &Manifest, dir: &std::path::Path) -> Result<(), DataError> {
    for shard in &manifest.shards {
        let path = dir.join(&shard.file);
        let file = std::fs::File::open(&path).map_err(DataError::io(&path, "open the shard"))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(DataError::io(&path, "read the shard"))?;
        let found = hasher.finalize().to_hex();
        if found.as_str() != shard.blake3 {
            return Err(DataError::content(
                &path,
                format!("its BLAKE3 is {found}, but {MANIFEST_FILE} says {}", shard.blake3),
            ));
        }
    }
    Ok(())
}

fn write_shard(
    store: &Progress,
    shard: usize,
    range: std::ops::Range<usize>,
    rows: &mut Pipeline,
    num_rows: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<ShardRecord, DataError> {
    let mut writer = ShardWriter::create(&store.partial(shard))?;
    let (mut statistics, mut rejected) = (Statistics::default(), Vec::new());
    for row in range {
        match rows.next()? {
            RowOutcome::Kept(kept) => {
                statistics.add(&kept.row.encoded, kept.is_cut, &kept.image_sizes);
                writer.push(kept.row)?;
            }
            RowOutcome::Rejected(reject) => rejected.push(reject),
        }
        progress(row + 1, num_rows);
    }
    let entry = writer.finish(&Progress::file_name(shard))?;
    store.keep(shard, entry, statistics, &rejected)
}

fn combine(
    made_with: crate::shards::MadeWith,
    num_rows: usize,
    records: Vec<ShardRecord>,
) -> Manifest {
    let (mut statistics, mut rejected) = (Statistics::default(), BTreeMap::new());
    let mut shards = Vec::with_capacity(records.len());
    for record in records {
        statistics.merge(&record.statistics);
        for (reason, count) in record.rejected {
            *rejected.entry(reason).or_default() += count;
        }
        shards.push(record.entry);
    }
    Manifest::new(made_with, num_rows, rejected, statistics, shards)
}
