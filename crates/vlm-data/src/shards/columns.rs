//! The columns of a shard, in the order of the file. `index.rs` knows which buffers hold them.

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

/// Bytes of a BLAKE3 hash.
pub(super) const HASH_BYTES: usize = 32;
