//! Prepared data sets: a folder of Arrow IPC files (shards) with a manifest.
//!
//! Each row of a shard has token ids, supervised spans, image starts, and the encoded images with
//! their hashes; the conversation and the location of the row are included for people. Other
//! programs can read the shards with pyarrow or Hugging Face's `datasets`. Here they are read by
//! position: opening a data set reads only its manifest, for any number of rows, and a row
//! costs a few small reads. The files are not memory-mapped, so that a truncated file or a failing
//! disk gives an error that names the file instead of ending the process.

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
