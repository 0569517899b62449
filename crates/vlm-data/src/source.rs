//! The trait [`RowSource`]: rows by index, from any kind of file.

use bytes::Bytes;

use crate::chat::ChatTokenizer;
use crate::encoded_row::EncodedRow;
use crate::error::DataError;
use crate::row_error::RowError;
use crate::rows::{Row, RowImage, Turn};

/// Rows by index, with the bytes of their images. Many threads read at once, in any order.
pub trait RowSource: Send + Sync {
    /// Number of rows, including unusable ones. It is known without reading.
    fn len(&self) -> usize;

    /// Whether there are no rows.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The conversation of row `index`, from 0, with its images.
    ///
    /// # Errors
    /// A row that cannot be used, or a disk that fails.
    fn row(&self, index: usize) -> Result<Row, RowError>;

    /// Row `index` as token ids, if the source has them, so that it need not be tokenized.
    /// [`Self::check_encoding`] tells whether the ids are the wanted ones.
    ///
    /// # Errors
    /// A row that cannot be used, or a disk that fails.
    fn prepared_row(&self, _index: usize) -> Result<Option<PreparedRow>, RowError> {
        Ok(None)
    }

    /// The encoded bytes (JPEG, PNG, …) of `image`, which is image `k` of row `index`.
    ///
    /// # Errors
    /// An image that cannot be read, or a disk that fails.
    fn image_bytes(&self, index: usize, k: usize, image: &RowImage) -> Result<Bytes, RowError>;

    /// Location of row `index` for messages: `captions.jsonl:17`.
    fn locate(&self, index: usize) -> String;

    /// Only the turns of row `index`. Sources that have images beside the text do not read them for
    /// this.
    ///
    /// # Errors
    /// A row that cannot be used, or a disk that fails.
    fn turns(&self, index: usize) -> Result<Vec<Turn>, RowError> {
        Ok(self.row(index)?.turns)
    }

    /// A description of how the rows are read, one line for each file or group of files. Reads a
    /// few rows.
    fn describe(&self) -> Vec<String> {
        Vec::new()
    }

    /// Number of tokens of row `index`, if [`Self::prepared_row`] has them. Does not read them.
    fn num_tokens(&self, _index: usize) -> Option<usize> {
        None
    }

    /// Checks that token ids in the source are those that `wanted` would make now.
    ///
    /// # Errors
    /// Ids that were made otherwise; the message tells the difference and what to do.
    fn check_encoding(&self, _wanted: &Encoding<'_>) -> Result<(), DataError> {
        Ok(())
    }
}

/// A row as token ids, with its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedRow {
    /// The token ids, cut at the length limit that the source was made with.
    pub encoded: EncodedRow,
    /// The images, in the order of `encoded.image_starts`.
    pub images: Vec<RowImage>,
}

/// Everything that decides a row's token ids.
#[derive(Debug, Clone, Copy)]
pub struct Encoding<'a> {
    /// Vocabulary, chat template and image placeholder.
    pub tokenizer: &'a ChatTokenizer,
    /// Number of tokens of an image in the prompt.
    pub tokens_per_image: usize,
    /// Length in tokens at which a row is cut.
    pub max_seq_len: usize,
}
