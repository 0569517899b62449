//! The file `manifest.json`: what a prepared data set holds and what it was made with.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::reject::RejectReason;
use crate::source::Encoding;
use crate::statistics::Statistics;

/// Name of the manifest's file in the folder of a prepared data set.
pub const MANIFEST_FILE: &str = "manifest.json";

const FORMAT: &str = "vlm prepared data";
const VERSION: u32 = 3;

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// The settings that the token ids were made with.
    pub(crate) made_with: MadeWith,
    /// Number of rows in the shards.
    pub num_rows: usize,
    /// Number of rows of the input, including rejected ones.
    pub num_source_rows: usize,
    /// Number of rejected rows by reason.
    pub rejected: BTreeMap<RejectReason, usize>,
    /// Statistics of the rows in the shards.
    pub statistics: Statistics,
    /// The shards, in the order of their rows.
    pub shards: Vec<ShardEntry>,
}

/// Everything except the input that decides the content of the shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeWith {
    /// Hash of vocabulary, chat template and special tokens.
    pub(crate) tokenizer_hash: String,
    /// Spelling of an image's token in the prompt.
    pub(crate) image_placeholder: String,
    /// Number of tokens of an image in the prompt.
    pub(crate) tokens_per_image: usize,
    /// Length in tokens at which a row is cut.
    pub(crate) max_seq_len: usize,
    /// `original`, or `resized` with a hash of the preprocessing.
    pub(crate) image_store: String,
    /// Number of rows of the input in a shard.
    pub(crate) rows_per_shard: usize,
    /// The options with which rows were read, as far as they differ from the default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) row_options: String,
}

/// The entry of a shard in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Name of its file in the folder.
    pub file: String,
    /// Number of its rows.
    pub num_rows: usize,
    /// Size of its file in bytes.
    pub num_bytes: u64,
    /// BLAKE3 hash of its file.
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
        let text =
            std::fs::read_to_string(&path).map_err(DataError::io(&path, "read the manifest"))?;
        let wrong = |problem: String| {
            let advice = "prepare the rows again with `cargo xtask prepare-data`";
            DataError::content(&path, format!("{problem}; {advice}"))
        };
        let manifest: Self =
            serde_json::from_str(&text).map_err(|e| wrong(format!("not a manifest: {e}")))?;
        if (manifest.format.as_str(), manifest.version) != (FORMAT, VERSION) {
            return Err(wrong(format!(
                "expected the format \"{FORMAT} {VERSION}\", found \"{} {}\"",
                manifest.format, manifest.version
            )));
        }
        Ok(manifest)
    }

    /// Spelling of an image's token in the prompt.
    pub fn image_placeholder(&self) -> &str {
        &self.made_with.image_placeholder
    }

    /// Number of tokens of an image in the prompt.
    pub fn tokens_per_image(&self) -> usize {
        self.made_with.tokens_per_image
    }

    /// Number of tokens to which rows were truncated.
    pub fn max_seq_len(&self) -> usize {
        self.made_with.max_seq_len
    }

    /// Checks that the rows are those that `wanted` would make of the same input.
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
                "prepared with the image placeholder {:?}, but the model has {token:?}",
                made.image_placeholder
            )
        } else if made.tokens_per_image != wanted.tokens_per_image {
            format!(
                "prepared with {} tokens per image, but the vision encoder has {} features",
                made.tokens_per_image, wanted.tokens_per_image
            )
        } else if wanted.max_seq_len > made.max_seq_len && self.was_cut() {
            format!(
                "prepared with `max_seq_len` {}, at which rows were cut, but now it is {}",
                made.max_seq_len, wanted.max_seq_len
            )
        } else {
            return Ok(());
        };
        Err(DataError::content(
            dir,
            format!("{problem}; prepare the data again, or use the settings it was prepared with"),
        ))
    }

    /// Whether a longer limit would give other rows.
    fn was_cut(&self) -> bool {
        let too_long = [RejectReason::CutThroughImage, RejectReason::NoSupervisedToken];
        self.statistics.num_cut > 0 || too_long.iter().any(|r| self.rejected.contains_key(r))
    }
}
