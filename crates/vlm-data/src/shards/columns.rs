//! The columns of a shard, in the order of the file. `index.rs` knows which buffers hold them.

pub(super) const INPUT_IDS: &str = "input_ids";
/// Start and end of each span, alternating.
pub(super) const SUPERVISED: &str = "supervised_spans";
pub(super) const IMAGE_STARTS: &str = "image_starts";
/// BLAKE3 of each image.
pub(super) const IMAGE_HASHES: &str = "image_hashes";
pub(super) const IMAGES: &str = "images";
/// The turns as JSON text.
pub(super) const CONVERSATIONS: &str = "conversations";
/// Location of the row in the input.
pub(super) const LOCATION: &str = "location";

/// Bytes of a BLAKE3 hash.
pub(super) const HASH_BYTES: usize = 32;
