//! Where rows come from.

use bytes::Bytes;

use crate::chat::{ChatTokenizer, EncodedRow};
use crate::error::DataError;
use crate::row_error::RowError;
use crate::rows::{Row, RowImage, Turn};

/// Rows by index, with the bytes of their images. Many threads read at once, in any order.
pub trait RowSource: Send + Sync {
    /// Number of rows, unusable ones included. Costs nothing.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The conversation of row `index`, from 0, with its images.
    ///
    /// # Errors
    /// Why the row cannot be used, or the disk that failed.
    fn row(&self, index: usize) -> Result<Row, RowError>;

    /// Row `index` as token ids, where the source holds them: then nobody need tokenize it.
    /// [`Self::check_encoding`] says whether the ids are the ones wanted.
    ///
    /// # Errors
    /// Why the row cannot be used, or the disk that failed.
    fn prepared_row(&self, _index: usize) -> Result<Option<PreparedRow>, RowError> {
        Ok(None)
    }

    /// The encoded bytes (JPEG, PNG, …) of `image`, which is number `k` of row `index`.
    ///
    /// # Errors
    /// Why the image cannot be had, or the disk that failed.
    fn image_bytes(&self, index: usize, k: usize, image: &RowImage) -> Result<Bytes, RowError>;

    /// Where a person finds the row: `captions.jsonl:17`.
    fn locate(&self, index: usize) -> String;

    /// The turns of row `index` alone. Sources that hold pictures beside the text do not read them
    /// for it.
    ///
    /// # Errors
    /// Why the row cannot be used, or the disk that failed.
    fn turns(&self, index: usize) -> Result<Vec<Turn>, RowError> {
        Ok(self.row(index)?.turns)
    }

    /// Which reader reads the rows, and by what rules, a line for each file or group of files; for a
    /// person. A few rows are read for it.
    fn describe(&self) -> Vec<String> {
        Vec::new()
    }

    /// How many tokens row `index` has, where [`Self::prepared_row`] has them. They are not read for
    /// it.
    fn num_tokens(&self, _index: usize) -> Option<usize> {
        None
    }

    /// Whether token ids that the source holds are those that `wanted` would make now.
    ///
    /// # Errors
    /// What they were made with, what is wanted and what to do about it.
    fn check_encoding(&self, _wanted: &Encoding<'_>) -> Result<(), DataError> {
        Ok(())
    }
}

/// A row as token ids, with its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedRow {
    /// Cut at the length limit that the source was made with.
    pub encoded: EncodedRow,
    /// In the order of `encoded.image_starts`.
    pub images: Vec<RowImage>,
}

/// What decides a row's token ids.
#[derive(Debug, Clone, Copy)]
pub struct Encoding<'a> {
    /// Vocabulary, chat template, image placeholder.
    pub tokenizer: &'a ChatTokenizer,
    /// Tokens an image has in the prompt.
    pub tokens_per_image: usize,
    /// Tokens a row is cut at.
    pub max_seq_len: usize,
}
