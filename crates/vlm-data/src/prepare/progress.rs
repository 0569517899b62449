//! The output folder while it is being made: which shards are finished, and with which settings.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::settings::{ImageStore, PrepareSettings};
use crate::atomic_file::{sync_folder_of, write_atomically};
use crate::error::DataError;
use crate::fingerprint::fingerprint;
use crate::reject::{RejectReason, Rejected};
use crate::reject_budget::RejectCounts;
use crate::shards::{MANIFEST_FILE, MadeWith, Manifest, ShardEntry};
use crate::source::RowSource;
use crate::statistics::Statistics;

const FOLDER: &str = ".progress";
const IDENTITY_FILE: &str = "settings.json";
const REJECTED_FILE: &str = "rejected.jsonl";

/// Everything that must be the same for finished shards to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PreparedFrom {
    /// Number of rows and a hash of some of them.
    input: String,
    /// Names, sizes and modification times of the input's files.
    input_files: Vec<String>,
    pub(super) made_with: MadeWith,
}

impl PreparedFrom {
    pub(super) fn new(
        source: &dyn RowSource,
        settings: &PrepareSettings,
    ) -> Result<Self, DataError> {
        Ok(Self {
            input: fingerprint(source)?,
            input_files: settings.input_files.clone(),
            made_with: MadeWith {
                tokenizer_hash: settings.tokenizer.hash().to_owned(),
                image_placeholder: settings.tokenizer.placeholder().token().to_owned(),
                tokens_per_image: settings.tokens_per_image,
                max_seq_len: settings.max_seq_len,
                image_store: match &settings.image_store {
                    ImageStore::Original => "original".to_owned(),
                    ImageStore::Resized(processor) => format!("resized {}", processor.hash()),
                },
                rows_per_shard: settings.rows_per_shard,
                row_options: settings.row_options.named_differences(),
            },
        })
    }
}

/// The record of a finished shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    pub(super) entry: ShardEntry,
    pub(super) statistics: Statistics,
    pub(super) rejected: BTreeMap<RejectReason, usize>,
}

pub(super) struct Progress {
    output: PathBuf,
    folder: PathBuf,
}

impl Progress {
    /// Opens the folder or creates it.
    pub(super) fn open(output: &Path, prepared_from: &PreparedFrom) -> Result<Self, DataError> {
        let folder = output.join(FOLDER);
        let this = Self { output: output.to_owned(), folder };
        let path = this.folder.join(IDENTITY_FILE);
        let known = output.join(MANIFEST_FILE).exists() || path.exists();
        if !known && fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(DataError::content(
                output,
                "is not empty and holds no prepared data; choose another `output`, or empty it",
            ));
        }
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(DataError::io(&path, "read the file"))?;
            let begun: Option<PreparedFrom> = serde_json::from_str(&text).ok();
            if begun.as_ref() != Some(prepared_from) {
                return Err(this.of_other(&text, prepared_from));
            }
        } else if !known {
            fs::create_dir_all(&this.folder)
                .map_err(DataError::io(&this.folder, "create the folder"))?;
            write_whole(&path, &json(&path, prepared_from)?)?;
        } else {
            // The manifest of a finished data set tells what it was made with.
            let manifest = Manifest::read(output)?;
            let is_same = manifest.made_with == prepared_from.made_with
                && prepared_from.input.starts_with(&format!("{} rows", manifest.num_source_rows));
            if !is_same {
                let made_with = serde_json::to_string(&manifest.made_with).unwrap_or_default();
                return Err(this.of_other(&made_with, prepared_from));
            }
        }
        Ok(this)
    }

    fn of_other(&self, begun: &str, now: &PreparedFrom) -> DataError {
        let now = serde_json::to_string(now).unwrap_or_default();
        DataError::content(
            &self.output,
            format!(
                "holds data prepared with other settings or from another input: {begun}; now: \
                 {now}. Choose another `output`, or remove this folder"
            ),
        )
    }

    /// The manifest, if the data set is finished.
    pub(super) fn finished(&self) -> Result<Option<Manifest>, DataError> {
        if !self.output.join(MANIFEST_FILE).exists() {
            return Ok(None);
        }
        let manifest = Manifest::read(&self.output)?;
        self.clear()?;
        Ok(Some(manifest))
    }

    /// The records of the finished shards, which are the first ones, and their number.
    pub(super) fn finished_shards(
        &self,
        num_shards: usize,
    ) -> Result<(Vec<ShardRecord>, usize), DataError> {
        let mut records = Vec::new();
        for shard in 0..num_shards {
            let path = self.record_path(shard);
            let Ok(text) = fs::read(&path) else { break };
            let record: ShardRecord = serde_json::from_slice(&text).map_err(|e| {
                DataError::content(
                    &path,
                    format!("expected the record of a shard: {e}; remove this file"),
                )
            })?;
            let file = self.output.join(&record.entry.file);
            if !file.metadata().is_ok_and(|found| found.len() == record.entry.num_bytes) {
                break;
            }
            records.push(record);
        }
        let count = records.len();
        Ok((records, count))
    }

    pub(super) fn file_name(shard: usize) -> String {
        format!("shard-{shard:05}.arrow")
    }

    /// The path of a shard until it is complete.
    pub(super) fn partial(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("{}.partial", Self::file_name(shard)))
    }

    /// Moves a complete shard to its final path. It counts only when its record, which is written
    /// last, exists.
    pub(super) fn keep(
        &self,
        shard: usize,
        entry: ShardEntry,
        statistics: Statistics,
        rejected: &[Rejected],
    ) -> Result<ShardRecord, DataError> {
        let path = self.output.join(&entry.file);
        fs::rename(self.partial(shard), &path).map_err(DataError::io(&path, "write the shard"))?;
        sync_folder_of(&path).map_err(DataError::io(&self.output, "write the folder"))?;
        let mut lines = Vec::new();
        let mut by_reason = BTreeMap::new();
        for row in rejected {
            *by_reason.entry(row.reason).or_default() += 1;
            lines.extend(json(&path, row)?);
            lines.push(b'\n');
        }
        write_whole(&self.rejected_path(shard), &lines)?;
        let record = ShardRecord { entry, statistics, rejected: by_reason };
        let record_path = self.record_path(shard);
        write_whole(&record_path, &json(&record_path, &record)?)?;
        Ok(record)
    }

    /// Writes the rejected rows of all shards into one file.
    pub(super) fn write_rejected(&self, manifest: &Manifest) -> Result<(), DataError> {
        let target = self.output.join(REJECTED_FILE);
        let append = |file: &mut BufWriter<File>| -> io::Result<()> {
            for shard in 0..manifest.shards.len() {
                io::copy(&mut File::open(self.rejected_path(shard))?, file)?;
            }
            Ok(())
        };
        write_atomically(&target, append).map_err(DataError::io(&target, "write the file"))
    }

    /// Checks that at most `max_fraction` of the rows were rejected, and that at least one row was
    /// kept.
    ///
    /// # Errors
    /// [`DataError::TooManyRejected`], with the first rejected rows.
    pub(super) fn check_rejected(
        &self,
        manifest: &Manifest,
        max_fraction: f64,
    ) -> Result<(), DataError> {
        let (num_rows, by_reason) = (manifest.num_source_rows, &manifest.rejected);
        let num_rejected: usize = by_reason.values().sum();
        let is_over = num_rejected as f64 > max_fraction * num_rows as f64;
        if !is_over && (num_rejected < num_rows || num_rows == 0) {
            return Ok(());
        }
        let path = self.output.join(REJECTED_FILE);
        let file = File::open(&path).map_err(DataError::io(&path, "read the file"))?;
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        let examples: Vec<Rejected> =
            lines.filter_map(|line| serde_json::from_str(&line).ok()).take(5).collect();
        let counts = RejectCounts { num_rows, num_earlier: 0, by_reason, max_fraction };
        Err(DataError::TooManyRejected(format!(
            "{} The list of rejected rows: {}",
            counts.message(&examples),
            path.display()
        )))
    }

    /// Writes the manifest, which completes the data set.
    pub(super) fn finish(&self, manifest: &Manifest) -> Result<(), DataError> {
        let path = self.output.join(MANIFEST_FILE);
        let text = serde_json::to_string_pretty(manifest)
            .map_err(|e| DataError::content(&path, e.to_string()))?;
        write_whole(&path, (text + "\n").as_bytes())?;
        self.clear()
    }

    fn clear(&self) -> Result<(), DataError> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)
                .map_err(DataError::io(&self.folder, "remove the folder"))?;
        }
        Ok(())
    }

    fn record_path(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("shard-{shard:05}.json"))
    }

    fn rejected_path(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("shard-{shard:05}.rejected.jsonl"))
    }
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, DataError> {
    serde_json::to_vec(value).map_err(|e| DataError::content(path, e.to_string()))
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    write_atomically(path, |file| file.write_all(bytes))
        .map_err(DataError::io(path, "write the file"))
}
