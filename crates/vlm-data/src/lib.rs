//! Turns rows into samples and batches on the host, without libtorch.
//!
//! A [`RowSource`] returns conversations and the bytes of their images; [`ChatTokenizer`] makes
//! token ids of a conversation and finds the tokens that are learned; [`ImageProcessor`] makes the
//! vision encoder's input of an image; the [`Loader`] does both ahead of time in worker threads and
//! puts the samples together as a [`Batch`]. A row that cannot be used is [`Rejected`] with its
//! location and the reason, and the run continues unless too many rows are rejected
//! ([`DataError::TooManyRejected`]).
//!
//! This crate knows neither tensors nor models nor the command line.

mod answer_ends;
mod answer_start;
mod arrow;
mod atomic_file;
mod batch;
mod bounded_template;
mod caught;
mod chat;
mod chat_draws;
mod csv;
mod data_paths;
mod decode;
mod encoded_row;
mod error;
mod feature_bytes;
mod feature_cache;
mod feature_cache_writer;
mod feature_checksums;
mod file_hash;
mod file_source;
mod fingerprint;
mod folder;
mod form;
mod generation_tag;
mod glob;
mod image_root;
mod image_scan;
mod jpeg_scan;
mod json_file;
mod json_list;
mod json_objects;
mod jsonl;
mod limits;
mod loaded_row;
mod loader;
mod mark_positions;
mod marked;
mod marks;
mod mix;
mod mixture;
mod open;
mod order;
mod ordered_map;
mod parquet;
mod permutation;
mod placeholder;
mod plain_file;
mod png;
mod prepare;
mod preprocess;
mod preprocess_config;
mod prompt_tokens;
mod python_json;
mod rated;
mod recent_cache;
mod record;
mod reject;
mod reject_budget;
mod reject_log;
mod row_error;
mod row_options;
mod row_reader;
mod row_text;
mod rows;
mod shards;
mod sniff;
mod source;
mod statistics;
mod supervision;
mod table_columns;
mod tar_index;
mod template;
mod template_files;
mod template_limits;
mod template_profile;
mod text_stream;
mod tokenizer_files;
mod try_row;
mod webdataset;
mod windows;
mod worker;

pub use atomic_file::write_atomically;
pub use batch::{Batch, Features, FeaturesDtype, IGNORE_INDEX, ImageData, ImagePosition, Padding};
pub use caught::is_panic_caught;
pub use chat::ChatTokenizer;
pub use chat_draws::{ChatChanges, ChatDraws};
pub use data_paths::DataPaths;
pub use decode::ImageLimits;
pub use encoded_row::EncodedRow;
pub use error::{DataError, has_disk_failure, is_disk_failure};
pub use feature_bytes::FeatureBytes;
pub use feature_cache::{FeatureCache, FeatureKey, ImageHash};
pub use feature_cache_writer::FeatureCacheWriter;
pub use fingerprint::fingerprint;
pub use image_scan::{ImageCount, ImageScan, ScannedChunk, count_images};
pub use loaded_row::{LoadedImage, LoadedRow};
pub use loader::{DEFAULT_BUCKET_WINDOW, Epoch, Loader, LoaderConfig};
pub use mix::{GOLDEN_GAMMA, mix_bits};
pub use mixture::Mixture;
pub use open::{open_source, open_source_with};
pub use ordered_map::OrderedMap;
pub use placeholder::ImagePlaceholder;
pub use prepare::{ImageStore, PrepareSettings, prepare, verify};
pub use preprocess::ImageProcessor;
pub use preprocess_config::ImageProcessorClass;
pub use reject::{Reject, RejectReason, Rejected};
pub use reject_budget::{DEFAULT_MAX_REJECTED_FRACTION, RejectBudget, count_by_reason};
pub use reject_log::RejectLog;
pub use row_error::RowError;
pub use row_options::RowOptions;
pub use rows::{IMAGE_TAG, Role, Row, RowImage, Turn, num_image_tags};
pub use shards::{MANIFEST_FILE, Manifest, ShardEntry};
pub use source::{Encoding, PreparedRow, RowSource};
pub use statistics::{PaddingWaste, Statistics};
pub use text_stream::TextStream;
pub use tokenizer_files::token_of_id;
pub use worker::ImageReading;
