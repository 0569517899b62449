//! Precomputed features of the vision encoder, on disk.
//!
//! A cache is a folder with four files: `features.bin` has the features of one image after
//! another, `hashes.bin` the BLAKE3 hash of each image's encoded bytes in the same order,
//! `checksums.bin` the checksum of each image's features, and `manifest.json` the encoder and
//! preprocessing that they were made with. Features are read by position on request, through the
//! page cache of the system, and compared with their checksum. The file is not memory-mapped: a
//! file that is truncated during a run gives an error that names it instead of a crash.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vlm_display::count;

use crate::batch::{Features, FeaturesDtype};
use crate::error::DataError;
use crate::feature_bytes::{FeatureBytes, Pool};
use crate::feature_checksums::{CHECKSUM, checksum, read_checksums};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const FEATURES: &str = "features.bin";
pub(crate) const HASHES: &str = "hashes.bin";
const VERSION: u32 = 1;
/// Bytes of a hash.
pub(crate) const HASH: usize = 32;

/// BLAKE3 of an image's encoded bytes.
pub type ImageHash = [u8; HASH];

/// Everything that determines the features of a cache, and their shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureKey {
    /// Version of the format.
    version: u32,
    /// Hash of the encoder's weights and configuration.
    pub encoder: String,
    /// [`crate::ImageProcessor::hash`].
    pub preprocessing: String,
    /// Data type of the stored values.
    pub dtype: FeaturesDtype,
    /// P: patches of an image.
    pub num_patches: usize,
    /// V: values of a patch.
    pub hidden_size: usize,
}

impl FeatureKey {
    /// A key for the current version of the format.
    pub fn new(
        encoder: String,
        preprocessing: String,
        dtype: FeaturesDtype,
        num_patches: usize,
        hidden_size: usize,
    ) -> Self {
        Self { version: VERSION, encoder, preprocessing, dtype, num_patches, hidden_size }
    }

    /// Bytes of one image's features.
    pub fn bytes_per_image(&self) -> usize {
        self.num_patches * self.hidden_size * self.dtype.size()
    }

    /// Describes a difference from `wanted`; the data type of the values may differ.
    fn difference(&self, wanted: &Self) -> Option<String> {
        let is_other = |what: &str| {
            Some(format!("{what}: the cache is stale; make it again with `vlm cache-features`"))
        };
        if self.version != wanted.version {
            is_other(&format!("expected format {}, found {}", wanted.version, self.version))
        } else if self.encoder != wanted.encoder {
            is_other("the features were made by another vision encoder than `vision`")
        } else if self.preprocessing != wanted.preprocessing {
            is_other("the features were made from images preprocessed otherwise than for `vision`")
        } else if (self.num_patches, self.hidden_size) != (wanted.num_patches, wanted.hidden_size) {
            is_other(&format!(
                "expected {2} patches of {3} values for each image, found {0} of {1}",
                self.num_patches, self.hidden_size, wanted.num_patches, wanted.hidden_size
            ))
        } else {
            None
        }
    }
}

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CacheManifest {
    #[serde(flatten)]
    pub(crate) key: FeatureKey,
    /// `None` while the cache is being made.
    pub(crate) num_images: Option<usize>,
    /// Whether the cache has `checksums.bin`; those of earlier versions do not.
    #[serde(default)]
    pub(crate) has_checksums: bool,
}

impl CacheManifest {
    pub(crate) fn read(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path)
            .map_err(DataError::io(&path, "read the feature cache's manifest"))?;
        serde_json::from_str(&text).map_err(|e| {
            DataError::content(&path, format!("not the manifest of a feature cache: {e}"))
        })
    }
}

/// A complete cache, open for reading by many threads at once.
#[derive(Debug)]
pub struct FeatureCache {
    folder: PathBuf,
    key: FeatureKey,
    features: File,
    hashes: File,
    /// First eight bytes of each hash with the index of its image, sorted.
    index: Vec<(u64, u32)>,
    /// The checksums of the features in the order of the images; `None` in a cache of an earlier
    /// version.
    checksums: Option<Vec<[u8; CHECKSUM]>>,
    buffers: Arc<Pool>,
}

impl FeatureCache {
    /// Opens the cache in `folder` if it was made as `wanted` says; the data type of its values may
    /// be any. Twenty bytes per image stay in memory.
    ///
    /// # Errors
    /// A folder without a cache; a cache that is incomplete or was made otherwise; files of the
    /// wrong length.
    pub fn open(folder: &Path, wanted: &FeatureKey) -> Result<Self, DataError> {
        let CacheManifest { key, num_images, has_checksums } = CacheManifest::read(folder)?;
        if let Some(difference) = key.difference(wanted) {
            return Err(DataError::content(folder, difference));
        }
        let num_images = num_images.ok_or_else(|| {
            DataError::content(
                folder,
                "the cache is incomplete; run the same `vlm cache-features` again to complete it",
            )
        })?;
        let open = |name: &str, bytes: usize| -> Result<File, DataError> {
            let path = folder.join(name);
            let file = File::open(&path).map_err(DataError::io(&path, "open the features"))?;
            let found = file.metadata().map_err(DataError::io(&path, "open the features"))?.len();
            // The numbers of a damaged manifest must not size any memory.
            let expected = (num_images as u64).checked_mul(bytes as u64);
            if expected != Some(found) {
                return Err(DataError::content(
                    &path,
                    format!(
                        "expected {} bytes for {}, found {found}; run the same \
                         `vlm cache-features` again to complete the cache",
                        expected.unwrap_or(u64::MAX),
                        count(num_images, "image")
                    ),
                ));
            }
            Ok(file)
        };
        let features = open(FEATURES, key.bytes_per_image())?;
        let hashes = open(HASHES, HASH)?;
        let mut bytes = vec![0; num_images * HASH];
        let path = folder.join(HASHES);
        hashes.read_exact_at(&mut bytes, 0).map_err(DataError::io(&path, "read the hashes"))?;
        let mut index: Vec<(u64, u32)> =
            bytes.chunks_exact(HASH).zip(0..).map(|(hash, place)| (prefix(hash), place)).collect();
        index.sort_unstable();
        let checksums = has_checksums.then(|| read_checksums(folder, num_images)).transpose()?;
        let buffers = Arc::default();
        Ok(Self { folder: folder.to_owned(), key, features, hashes, index, checksums, buffers })
    }

    /// Whether damage to the values is noticed. Caches that were made by earlier versions have no
    /// checksums.
    pub fn has_checksums(&self) -> bool {
        self.checksums.is_some()
    }

    /// What the features were made with, and their shape.
    pub fn key(&self) -> &FeatureKey {
        &self.key
    }

    /// Number of images that have features.
    pub fn num_images(&self) -> usize {
        self.index.len()
    }

    /// Index of the image with this hash, or `None` if the cache does not have it.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn find(&self, hash: &ImageHash) -> Result<Option<usize>, DataError> {
        let wanted = prefix(hash);
        let first = self.index.partition_point(|&(prefix, _)| prefix < wanted);
        for &(prefix, place) in &self.index[first..] {
            if prefix != wanted {
                break;
            }
            let mut found = [0; HASH];
            let path = self.folder.join(HASHES);
            self.hashes
                .read_exact_at(&mut found, place as u64 * HASH as u64)
                .map_err(DataError::io(&path, "read the hashes"))?;
            if found == *hash {
                return Ok(Some(place as usize));
            }
        }
        Ok(None)
    }

    /// The features of the images with these indices, one after another.
    ///
    /// # Errors
    /// A file that cannot be read; features that differ from their checksum.
    pub(crate) fn gather(&self, places: &[usize]) -> Result<Features, DataError> {
        let size = self.key.bytes_per_image();
        let mut bytes = FeatureBytes::from_pool(&self.buffers, places.len() * size);
        for (&place, into) in places.iter().zip(bytes.as_mut().chunks_exact_mut(size)) {
            self.read(place, into)?;
        }
        let FeatureKey { dtype, num_patches, hidden_size, .. } = self.key;
        Ok(Features { bytes, dtype, num_patches, hidden_size })
    }

    /// Reads the features of image `place`, an index that [`Self::find`] returned, into `into`,
    /// whose length is [`FeatureKey::bytes_per_image`].
    ///
    /// # Errors
    /// A file that cannot be read; features that differ from their checksum.
    pub fn read(&self, place: usize, into: &mut [u8]) -> Result<(), DataError> {
        debug_assert_eq!(into.len(), self.key.bytes_per_image());
        let at = place as u64 * into.len() as u64;
        self.features
            .read_exact_at(into, at)
            .map_err(DataError::io(&self.folder.join(FEATURES), "read the features"))?;
        let expected = self.checksums.as_ref().and_then(|checksums| checksums.get(place));
        match expected {
            Some(expected) if checksum(into) != *expected => Err(self.damaged(place, into.len())),
            _ => Ok(()),
        }
    }

    /// The error for image `place`, whose features of `size` bytes differ from their checksum.
    fn damaged(&self, place: usize, size: usize) -> DataError {
        let mut hash = [0; HASH];
        let hash = match self.hashes.read_exact_at(&mut hash, place as u64 * HASH as u64) {
            Ok(()) => format!(" (BLAKE3 of its file: {})", blake3::Hash::from_bytes(hash)),
            Err(_) => String::new(),
        };
        DataError::content(
            &self.folder.join(FEATURES),
            format!(
                "the features of image {place} of the cache{hash}, {size} bytes from byte {}, \
                 differ from their checksum: the file is damaged; check the disk, and run the same \
                 `vlm cache-features` again, which computes the features of damaged images anew",
                place as u64 * size as u64
            ),
        )
    }
}

fn prefix(hash: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(bytes)
}
