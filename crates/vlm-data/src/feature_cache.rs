//! The vision encoder's features of many images, made once and kept on disk.
//!
//! A folder with `features.bin`, the features of one image after another; `hashes.bin`, BLAKE3 of
//! each image's encoded bytes in the same order; and `manifest.json`, which says what made them.
//! Features are read at their place when they are asked for, through the system's page cache: a
//! file that was cut short under the run is then an error with a name, where a mapped one would be
//! a crash.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::batch::{Features, FeaturesDtype};
use crate::error::DataError;
use crate::feature_bytes::{FeatureBytes, Pool};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const FEATURES: &str = "features.bin";
pub(crate) const HASHES: &str = "hashes.bin";
const VERSION: u32 = 1;
/// Bytes of a hash.
pub(crate) const HASH: usize = 32;

/// BLAKE3 of an image's encoded bytes.
pub type ImageHash = [u8; HASH];

/// What made a cache's features, and their shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureKey {
    /// Version of the format.
    version: u32,
    /// Hash of the encoder's weights and configuration.
    pub encoder: String,
    /// [`crate::ImageProcessor::hash`].
    pub preprocessing: String,
    /// How they are stored.
    pub dtype: FeaturesDtype,
    /// P: patches of an image.
    pub num_patches: usize,
    /// V: values of a patch.
    pub hidden_size: usize,
}

impl FeatureKey {
    /// A key of the present version.
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

    /// What differs from `wanted`, in words; the type of the values may be any.
    fn difference(&self, wanted: &Self) -> Option<String> {
        let is_other = |what: &str| {
            Some(format!("{what}: the cache is stale; make it anew with `vlm cache-features`"))
        };
        if self.version != wanted.version {
            is_other(&format!("format {} instead of {}", self.version, wanted.version))
        } else if self.encoder != wanted.encoder {
            is_other("these features are of another vision encoder than --vision")
        } else if self.preprocessing != wanted.preprocessing {
            is_other("these features are of pictures preprocessed otherwise than --vision says")
        } else if (self.num_patches, self.hidden_size) != (wanted.num_patches, wanted.hidden_size) {
            is_other(&format!(
                "{} patches of {} values an image instead of {} of {}",
                self.num_patches, self.hidden_size, wanted.num_patches, wanted.hidden_size
            ))
        } else {
            None
        }
    }
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    #[serde(flatten)]
    pub(crate) key: FeatureKey,
    /// `None` while the cache is being made.
    pub(crate) num_images: Option<usize>,
}

impl Manifest {
    pub(crate) fn read(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path)
            .map_err(DataError::io(&path, "read the feature cache's manifest"))?;
        serde_json::from_str(&text).map_err(|e| {
            DataError::content(&path, format!("not the manifest of a feature cache: {e}"))
        })
    }
}

/// A finished cache, open for reading by many threads at once.
#[derive(Debug)]
pub struct FeatureCache {
    folder: PathBuf,
    key: FeatureKey,
    features: File,
    hashes: File,
    /// First eight bytes of each hash with its place, sorted.
    index: Vec<(u64, u32)>,
    buffers: Arc<Pool>,
}

impl FeatureCache {
    /// Opens the cache in `folder`, if it is what `wanted` says, whatever its values' type. Twelve
    /// to sixteen bytes an image stay in memory.
    ///
    /// # Errors
    /// No cache, an unfinished one, a stale one, files that are too short.
    pub fn open(folder: &Path, wanted: &FeatureKey) -> Result<Self, DataError> {
        let Manifest { key, num_images } = Manifest::read(folder)?;
        if let Some(difference) = key.difference(wanted) {
            return Err(DataError::content(folder, difference));
        }
        let num_images = num_images.ok_or_else(|| {
            DataError::content(
                folder,
                "the cache is not finished; run the same `vlm cache-features` again, it goes on",
            )
        })?;
        let open = |name: &str, bytes: usize| -> Result<File, DataError> {
            let path = folder.join(name);
            let file = File::open(&path).map_err(DataError::io(&path, "open the features"))?;
            let found = file.metadata().map_err(DataError::io(&path, "open the features"))?.len();
            if found != (num_images * bytes) as u64 {
                let expected = num_images * bytes;
                return Err(DataError::content(
                    &path,
                    format!(
                        "{found} bytes; the manifest says {num_images} images, {expected} bytes"
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
        let buffers = Arc::default();
        Ok(Self { folder: folder.to_owned(), key, features, hashes, index, buffers })
    }

    /// What made the features, and their shape.
    pub fn key(&self) -> &FeatureKey {
        &self.key
    }

    /// Images there are features of.
    pub fn num_images(&self) -> usize {
        self.index.len()
    }

    /// Where the features of the image with this hash are, if they are.
    ///
    /// # Errors
    /// The system's, with the path.
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

    /// The features at `places`, one after another.
    ///
    /// # Errors
    /// The system's, with the path.
    pub(crate) fn gather(&self, places: &[usize]) -> Result<Features, DataError> {
        let size = self.key.bytes_per_image();
        let mut bytes = FeatureBytes::of_pool(&self.buffers, places.len() * size);
        for (&place, into) in places.iter().zip(bytes.as_mut().chunks_exact_mut(size)) {
            self.read(place, into)?;
        }
        let FeatureKey { dtype, num_patches, hidden_size, .. } = self.key;
        Ok(Features { bytes, dtype, num_patches, hidden_size })
    }

    /// Reads the features at `place`, as [`Self::find`] gives it, into `into`, which is as long as
    /// [`FeatureKey::bytes_per_image`].
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn read(&self, place: usize, into: &mut [u8]) -> Result<(), DataError> {
        debug_assert_eq!(into.len(), self.key.bytes_per_image());
        let at = place as u64 * into.len() as u64;
        self.features
            .read_exact_at(into, at)
            .map_err(DataError::io(&self.folder.join(FEATURES), "read the features"))
    }
}

fn prefix(hash: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(bytes)
}
