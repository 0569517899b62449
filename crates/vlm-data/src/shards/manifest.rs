//! `manifest.json`: what a prepared data set holds and what it was made with.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::reject::RejectReason;
use crate::source::Encoding;
use crate::statistics::Statistics;

/// The manifest's file in the folder.
pub const MANIFEST_FILE: &str = "manifest.json";

const FORMAT: &str = "vlm prepared data";
const VERSION: u32 = 3;

/// What stands in `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// What the token ids were made with.
    pub(crate) made_with: MadeWith,
    /// Rows in the shards.
    pub num_rows: usize,
    /// Rows of the input, rejected ones included.
    pub num_source_rows: usize,
    /// Rejected rows by reason.
    pub rejected: BTreeMap<RejectReason, usize>,
    /// Of the rows in the shards.
    pub statistics: Statistics,
    /// In the order of their rows.
    pub shards: Vec<ShardEntry>,
}

/// What decides the content of the shards, but for the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeWith {
    /// Hash of vocabulary, chat template and special tokens.
    pub(crate) tokenizer_hash: String,
    /// How an image is spelled in the prompt.
    pub(crate) image_placeholder: String,
    /// Tokens an image has in the prompt.
    pub(crate) tokens_per_image: usize,
    /// Tokens a row is cut at.
    pub(crate) max_seq_len: usize,
    /// `original`, or `resized` with the hash of the preprocessing.
    pub(crate) image_store: String,
    /// Source rows a shard.
    pub(crate) rows_per_shard: usize,
    /// How rows were read, where that is not the default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) row_options: String,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Its file in the folder.
    pub file: String,
    /// Its rows.
    pub num_rows: usize,
    /// Its size in bytes.
    pub num_bytes: u64,
    /// BLAKE3 of the file.
    pub blake3: String,
}

impl Manifest {
    pub(crate) fn new(
        made_with: MadeWith,
        num_source_rows: usize,
        rejected: BTreeMap<RejectReason, usize>,
        statistics: Statistics,
        shards: Vec<ShardEntry>,
    ) -> Self {
        let num_rows = shards.iter().map(|shard| shard.num_rows).sum();
        let (format, version) = (FORMAT.to_owned(), VERSION);
        Self { format, version, made_with, num_rows, num_source_rows, rejected, statistics, shards }
    }

    /// Reads the manifest of the folder `dir`.
    ///
    /// # Errors
    /// No manifest, or one of another kind or version.
    pub fn read(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join(MANIFEST_FILE);
        let text = std::fs::read_to_string(&path).map_err(DataError::io(&path, "read"))?;
        let wrong = |problem: String| {
            let advice = "prepare the rows anew with `cargo xtask prepare-data`";
            DataError::content(&path, format!("{problem}; {advice}"))
        };
        let manifest: Self =
            serde_json::from_str(&text).map_err(|e| wrong(format!("not its manifest: {e}")))?;
        if (manifest.format.as_str(), manifest.version) != (FORMAT, VERSION) {
            return Err(wrong(format!(
                "it says \"{} {}\", and this version reads \"{FORMAT} {VERSION}\"",
                manifest.format, manifest.version
            )));
        }
        Ok(manifest)
    }

    /// Whether the rows are those that `wanted` would make of the same input.
    pub(crate) fn check(&self, dir: &Path, wanted: &Encoding<'_>) -> Result<(), DataError> {
        let made = &self.made_with;
        let (hash, token) = (wanted.tokenizer.hash(), wanted.tokenizer.placeholder().token());
        let problem = if made.tokenizer_hash != hash {
            format!(
                "prepared with another tokenizer or chat template ({:.12}…, now {hash:.12}…)",
                made.tokenizer_hash
            )
        } else if made.image_placeholder != token {
            format!(
                "prepared with images spelled {:?}, but the model's are spelled {token:?}",
                made.image_placeholder
            )
        } else if made.tokens_per_image != wanted.tokens_per_image {
            format!(
                "prepared with {} tokens an image, but the vision encoder makes {} features",
                made.tokens_per_image, wanted.tokens_per_image
            )
        } else if wanted.max_seq_len > made.max_seq_len && self.was_cut() {
            format!(
                "prepared with --max-seq-len {}, at which rows were cut, but {} is wanted",
                made.max_seq_len, wanted.max_seq_len
            )
        } else {
            return Ok(());
        };
        Err(DataError::content(
            dir,
            format!("{problem}; prepare the data anew, or train with what it was prepared with"),
        ))
    }

    /// Whether a longer limit would give other rows.
    fn was_cut(&self) -> bool {
        let too_long = [RejectReason::CutThroughImage, RejectReason::NoSupervisedToken];
        self.statistics.num_cut > 0 || too_long.iter().any(|r| self.rejected.contains_key(r))
    }
}
