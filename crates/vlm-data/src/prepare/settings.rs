//! How a data set is prepared.

use std::path::PathBuf;
use std::sync::Arc;

use crate::chat::ChatTokenizer;
use crate::decode::ImageLimits;
use crate::preprocess::ImageProcessor;
use crate::row_options::RowOptions;

/// Which bytes of a picture are kept.
#[derive(Debug, Clone, Default)]
pub enum ImageStore {
    /// As they were.
    #[default]
    Original,
    /// Resized and cropped to what the encoder takes, as PNG.
    Resized(Arc<ImageProcessor>),
}

/// How a data set is prepared.
pub struct PrepareSettings {
    /// What shows that the input was changed since an earlier call that was interrupted, as
    /// [`crate::DataPaths::file_states`] gives it. It leaves no trace in the shards.
    pub input_files: Vec<String>,
    /// How the rows were read.
    pub row_options: RowOptions,
    /// Makes token ids.
    pub tokenizer: Arc<ChatTokenizer>,
    /// Tokens an image has in the prompt.
    pub tokens_per_image: usize,
    /// Tokens a row is cut at.
    pub max_seq_len: usize,
    /// Which bytes of a picture are kept.
    pub image_store: ImageStore,
    /// The largest image that is kept; rows with larger ones are rejected.
    pub limits: ImageLimits,
    /// Rows of the input that go into a shard.
    pub rows_per_shard: usize,
    /// Share of the rows that may be rejected; with more of them there is no prepared data set.
    pub max_rejected_fraction: f64,
    /// Threads that check rows.
    pub num_workers: usize,
    /// Folder to write.
    pub output: PathBuf,
}
