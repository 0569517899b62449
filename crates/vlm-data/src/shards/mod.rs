//! Prepared data sets: a folder of Arrow IPC files (shards) with a manifest.
//!
//! A shard's rows have token ids, supervised spans and image starts, the encoded pictures with
//! their hashes, and beside them the conversation and the place of the row, for people. Other
//! programs read the shards with pyarrow or Hugging Face's `datasets`. We read by position: opening
//! a data set reads its manifest alone, whatever the number of rows, and a row costs a few small
//! reads. Memory is not mapped: a file that is cut off or a disk that fails is then an error with a
//! name, and not the end of the process.

mod index;
mod manifest;
mod source;
mod writer;

pub(crate) use manifest::MadeWith;
pub use manifest::{MANIFEST_FILE, Manifest, ShardEntry};
pub use source::ShardSource;
pub(crate) use writer::{ShardRow, ShardWriter};

/// The columns, in the order of the files. Which buffers hold them [`index`] knows.
mod columns {
    pub(super) const INPUT_IDS: &str = "input_ids";
    /// Start and end of each span, one after the other.
    pub(super) const SUPERVISED: &str = "supervised_spans";
    pub(super) const IMAGE_STARTS: &str = "image_starts";
    /// BLAKE3 of each picture.
    pub(super) const IMAGE_HASHES: &str = "image_hashes";
    pub(super) const IMAGES: &str = "images";
    /// JSON.
    pub(super) const CONVERSATIONS: &str = "conversations";
    /// Where the row came from.
    pub(super) const LOCATION: &str = "location";
}

/// Bytes of a BLAKE3 hash.
const HASH_BYTES: usize = 32;
