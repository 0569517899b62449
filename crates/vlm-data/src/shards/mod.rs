//! Prepared data sets: a folder of Arrow IPC files (shards) with a manifest.
//!
//! A shard's rows have token ids, supervised spans and image starts, the encoded pictures with
//! their hashes, and beside them the conversation and the place of the row, for people. Other
//! programs read the shards with pyarrow or Hugging Face's `datasets`. We read by position: opening
//! a data set reads its manifest alone, whatever the number of rows, and a row costs a few small
//! reads. Memory is not mapped: a file that is cut off or a disk that fails is then an error with a
//! name, and not the end of the process.

mod columns;
mod index;
mod manifest;
mod report;
mod source;
mod writer;

pub(crate) use manifest::MadeWith;
pub use manifest::{MANIFEST_FILE, Manifest, ShardEntry};
pub use source::ShardSource;
pub(crate) use writer::{ShardRow, ShardWriter};
