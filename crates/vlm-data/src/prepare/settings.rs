//! The settings of `prepare`.

use std::path::PathBuf;
use std::sync::Arc;

use crate::chat::ChatTokenizer;
use crate::decode::ImageLimits;
use crate::preprocess::ImageProcessor;
use crate::row_options::RowOptions;

/// Which bytes of an image are stored.
#[derive(Debug, Clone, Default)]
pub enum ImageStore {
    /// The bytes of the input.
    #[default]
    Original,
    /// The image resized and cropped for the encoder, as PNG.
    Resized(Arc<ImageProcessor>),
}

/// Settings of [`prepare`](crate::prepare).
pub struct PrepareSettings {
    /// The state of the input's files, as [`crate::DataPaths::file_states`] gives it. It shows
    /// whether the input was changed since an earlier call that was interrupted, and does not
    /// influence the shards.
    pub input_files: Vec<String>,
    /// Options with which the rows are read.
    pub row_options: RowOptions,
    /// Tokenizer that makes the token ids.
    pub tokenizer: Arc<ChatTokenizer>,
    /// Number of tokens of an image in the prompt.
    pub tokens_per_image: usize,
    /// Length in tokens at which a row is cut.
    pub max_seq_len: usize,
    /// Which bytes of an image are stored.
    pub image_store: ImageStore,
    /// Largest image that is kept; rows with a larger one are rejected.
    pub limits: ImageLimits,
    /// Number of rows of the input in a shard.
    pub rows_per_shard: usize,
    /// Largest fraction of rejected rows, from 0 to 1; with more there is no prepared data set.
    pub max_rejected_fraction: f64,
    /// Number of threads that check rows.
    pub num_workers: usize,
    /// Folder to write.
    pub output: PathBuf,
}
