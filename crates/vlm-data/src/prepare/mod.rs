//! Makes a prepared data set from any other: every row is checked and tokenized once, on all cores,
//! in bounded memory, and rows that cannot be trained on are listed with the reason.
//!
//! A shard is made of a fixed range of the input's rows, so that its bytes depend neither on the
//! number of threads nor on interruptions. Finished shards are kept: the folder `.progress` in the
//! output lists them until the manifest does.

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
use pipeline::Pipeline;
use progress::{PreparedFrom, Progress, ShardRecord};

/// Prepares all rows of `source`, continuing an earlier call that was interrupted. `progress` is
/// called with the number of rows done, including those of earlier calls, and the number of all
/// rows.
///
/// # Errors
/// A folder that holds something else, or was begun with other settings or another input; a file
/// that cannot be written; a disk that fails while the input is read; more rejected rows than
/// allowed, which are listed in the folder.
pub fn prepare(
    source: &Arc<dyn RowSource>,
    settings: &PrepareSettings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Manifest, DataError> {
    if settings.rows_per_shard == 0 || settings.tokens_per_image == 0 || settings.max_seq_len < 2 {
        return Err(DataError::Settings(
            "`rows_per_shard` and `tokens_per_image` must be at least 1, `max_seq_len` at least 2"
                .into(),
        ));
    }
    if !(0.0..=1.0).contains(&settings.max_rejected_fraction) {
        return Err(DataError::Settings(format!(
            "`max_rejected_fraction` is {}, but must be from 0 to 1",
            settings.max_rejected_fraction
        )));
    }
    let prepared_from = PreparedFrom::new(source.as_ref(), settings)?;
    let store = Progress::open(&settings.output, &prepared_from)?;
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
    let manifest = combine(prepared_from.made_with, num_rows, records);
    store.write_rejected(&manifest)?;
    // Without its manifest the folder is not a data set yet: the same command with a higher limit
    // completes it without checking a row again.
    store.check_rejected(&manifest, settings.max_rejected_fraction)?;
    store.finish(&manifest)?;
    Ok(manifest)
}

/// Checks that every shard of a prepared folder has the bytes that it was written with.
///
/// # Errors
/// The first shard that has other bytes.
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
                format!(
                    "expected the BLAKE3 hash {} of {MANIFEST_FILE}, found {found}; copy the file \
                     again, or prepare the rows again",
                    shard.blake3
                ),
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
            Ok(kept) => {
                statistics.add(&kept.row.encoded, kept.is_cut, &kept.image_sizes);
                writer.push(kept.row)?;
            }
            Err(reject) => rejected.push(reject),
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
