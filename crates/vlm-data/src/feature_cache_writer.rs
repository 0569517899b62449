//! Writes a feature cache. If the program is killed, at most the work of the last seconds is lost.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vlm_display::count;

use crate::atomic_file::write_atomically;
use crate::error::DataError;
use crate::feature_cache::{
    CacheManifest, FEATURES, FeatureKey, HASH, HASHES, ImageHash, MANIFEST,
};

/// Longest time whose work a power cut may cost.
const TIME_BETWEEN_FLUSHES: Duration = Duration::from_secs(10);

/// A feature cache that is being written.
///
/// Features are flushed to the disk before their hashes, so that every hash in the file has its
/// features, whenever the program ends.
#[derive(Debug)]
pub struct FeatureCacheWriter {
    folder: PathBuf,
    manifest: CacheManifest,
    features: File,
    hashes: File,
    known: HashSet<ImageHash>,
    /// Hashes whose features may not be on the disk yet.
    pending: Vec<u8>,
    flushed: Instant,
}

impl FeatureCacheWriter {
    /// Begins a cache in `folder`, or continues the one there. Features at the end of the file
    /// without a hash are removed.
    ///
    /// # Errors
    /// A folder that holds a cache made otherwise, or other files; a folder that cannot be written.
    pub fn open(folder: &Path, key: FeatureKey) -> Result<Self, DataError> {
        std::fs::create_dir_all(folder).map_err(DataError::io(folder, "create the folder"))?;
        let manifest = if folder.join(MANIFEST).exists() {
            let manifest = CacheManifest::read(folder)?;
            if manifest.key != key {
                return Err(DataError::content(
                    folder,
                    "holds the features of another encoder, preprocessing or dtype; nothing is \
                     overwritten: choose another `output`, or remove this folder",
                ));
            }
            manifest
        } else if holds_anything(folder)? {
            return Err(DataError::content(
                folder,
                "is not empty and holds no feature cache; choose another `output`",
            ));
        } else {
            let manifest = CacheManifest { key, num_images: None };
            write_manifest(folder, &manifest)?;
            manifest
        };
        let bytes_per_image = manifest.key.bytes_per_image() as u64;
        let (features, features_len) = open(&folder.join(FEATURES))?;
        let (mut hashes, hashes_len) = open(&folder.join(HASHES))?;
        let num_images = (hashes_len / HASH as u64).min(features_len / bytes_per_image);
        let mut writer = Self {
            folder: folder.to_owned(),
            manifest,
            known: HashSet::with_capacity(num_images as usize),
            pending: Vec::new(),
            flushed: Instant::now(),
            features,
            hashes: hashes.try_clone().map_err(DataError::io(folder, "open the hashes"))?,
        };
        let mut bytes = vec![0; num_images as usize * HASH];
        hashes
            .read_exact(&mut bytes)
            .map_err(DataError::io(&folder.join(HASHES), "read the hashes"))?;
        for hash in bytes.chunks_exact(HASH) {
            let mut known = [0; HASH];
            known.copy_from_slice(hash);
            writer.known.insert(known);
        }
        cut(&mut writer.features, num_images * bytes_per_image, &folder.join(FEATURES))?;
        cut(&mut writer.hashes, num_images * HASH as u64, &folder.join(HASHES))?;
        Ok(writer)
    }

    /// Number of images done, those of earlier runs included.
    pub fn num_images(&self) -> usize {
        self.known.len()
    }

    /// Hashes of the images that are done.
    pub fn known(&self) -> &HashSet<ImageHash> {
        &self.known
    }

    /// The key that this cache was begun with.
    pub fn key(&self) -> &FeatureKey {
        &self.manifest.key
    }

    /// Adds the features of N images: `bytes` is `[N, P, V]` in the data type of the cache.
    ///
    /// # Errors
    /// A file that cannot be written, for example on a full disk; `bytes` of another length than N
    /// images have.
    pub fn append(&mut self, hashes: &[ImageHash], bytes: &[u8]) -> Result<(), DataError> {
        let path = self.folder.join(FEATURES);
        if bytes.len() != hashes.len() * self.manifest.key.bytes_per_image() {
            return Err(DataError::content(
                &path,
                format!(
                    "expected {} bytes for {}, found {}",
                    hashes.len() * self.manifest.key.bytes_per_image(),
                    count(hashes.len(), "image"),
                    bytes.len()
                ),
            ));
        }
        if self.manifest.num_images.take().is_some() {
            // The cache was complete and is so no longer.
            write_manifest(&self.folder, &self.manifest)?;
        }
        self.features.write_all(bytes).map_err(DataError::io(&path, "write the features"))?;
        for hash in hashes {
            self.pending.extend_from_slice(hash);
            self.known.insert(*hash);
        }
        if self.flushed.elapsed() >= TIME_BETWEEN_FLUSHES {
            self.flush()?;
        }
        Ok(())
    }

    /// Flushes everything that was added, and then its hashes.
    fn flush(&mut self) -> Result<(), DataError> {
        let (features, hashes) = (self.folder.join(FEATURES), self.folder.join(HASHES));
        self.features.sync_data().map_err(DataError::io(&features, "write the features"))?;
        self.hashes
            .write_all(&self.pending)
            .and_then(|()| self.hashes.sync_data())
            .map_err(DataError::io(&hashes, "write the hashes"))?;
        self.pending.clear();
        self.flushed = Instant::now();
        Ok(())
    }

    /// Keeps the images that are done, so that another call can continue.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn pause(mut self) -> Result<(), DataError> {
        self.flush()
    }

    /// Marks the cache as complete and returns the number of its images.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn finish(mut self) -> Result<usize, DataError> {
        self.flush()?;
        self.manifest.num_images = Some(self.known.len());
        write_manifest(&self.folder, &self.manifest)?;
        Ok(self.known.len())
    }
}

fn open(path: &Path) -> Result<(File, u64), DataError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path).map_err(DataError::io(path, "open the file for writing"))?;
    let length = file.metadata().map_err(DataError::io(path, "open the file for writing"))?.len();
    Ok((file, length))
}

fn cut(file: &mut File, length: u64, path: &Path) -> Result<(), DataError> {
    file.set_len(length)
        .and_then(|()| file.seek(SeekFrom::Start(length)))
        .map(|_| ())
        .map_err(DataError::io(path, "truncate the file"))
}

fn holds_anything(folder: &Path) -> Result<bool, DataError> {
    let mut entries = folder.read_dir().map_err(DataError::io(folder, "read the folder"))?;
    Ok(entries.next().is_some())
}

fn write_manifest(folder: &Path, manifest: &CacheManifest) -> Result<(), DataError> {
    let path = folder.join(MANIFEST);
    let text = serde_json::to_string_pretty(manifest)
        .map_err(|e| DataError::content(&path, e.to_string()))?;
    write_atomically(&path, |file| file.write_all(text.as_bytes()))
        .map_err(DataError::io(&path, "write the manifest"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::FeaturesDtype;
    use crate::feature_cache::FeatureCache;

    fn key(encoder: &str) -> FeatureKey {
        FeatureKey::new(encoder.into(), "p".into(), FeaturesDtype::Bfloat16, 2, 3)
    }

    fn hash(n: u8) -> ImageHash {
        let mut hash = [7; HASH];
        // The first eight bytes, the index's, are alike for all.
        hash[8] = n;
        hash
    }

    fn fill(writer: &mut FeatureCacheWriter, numbers: &[u8]) {
        for &n in numbers {
            writer.append(&[hash(n)], &[n; 12]).unwrap();
        }
    }

    #[test]
    fn what_was_written_is_found_by_hash() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        fill(&mut writer, &[1, 2, 3]);
        assert!(
            FeatureCache::open(folder.path(), &key("e"))
                .is_err_and(|e| { e.to_string().contains("incomplete") })
        );
        assert_eq!(writer.finish().unwrap(), 3);
        let cache = FeatureCache::open(folder.path(), &key("e")).unwrap();
        for n in [3, 1, 2] {
            let place = cache.find(&hash(n)).unwrap().unwrap();
            let mut bytes = [0; 12];
            cache.read(place, &mut bytes).unwrap();
            assert_eq!(bytes, [n; 12]);
        }
        assert_eq!(cache.find(&hash(9)).unwrap(), None);
    }

    #[test]
    fn a_killed_run_continues_where_its_hashes_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        fill(&mut writer, &[1, 2]);
        writer.pause().unwrap();
        // Features without a hash, and half a hash: what a kill leaves.
        let append = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            File::options().append(true).open(path).unwrap().write_all(bytes).unwrap();
        };
        append(FEATURES, &[9; 17]);
        append(HASHES, &[9; 5]);
        let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        assert_eq!((writer.num_images(), writer.known().contains(&hash(2))), (2, true));
        fill(&mut writer, &[3]);
        assert_eq!(writer.finish().unwrap(), 3);
        let cache = FeatureCache::open(folder.path(), &key("e")).unwrap();
        let mut bytes = [0; 12];
        cache.read(cache.find(&hash(3)).unwrap().unwrap(), &mut bytes).unwrap();
        assert_eq!(bytes, [3; 12]);
    }

    #[test]
    fn a_stale_cache_and_one_cut_short_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        fill(&mut writer, &[1]);
        writer.finish().unwrap();
        let refused = |wanted: &FeatureKey| {
            FeatureCache::open(folder.path(), wanted).unwrap_err().to_string()
        };
        assert!(refused(&key("f")).contains("another vision encoder"));
        let other = FeatureKey::new("e".into(), "q".into(), FeaturesDtype::Float32, 2, 3);
        assert!(refused(&other).contains("preprocessed otherwise"));
        let other = FeatureKey::new("e".into(), "p".into(), FeaturesDtype::Float32, 2, 4);
        assert!(refused(&other).contains("found 2 of 3"));
        assert!(FeatureCacheWriter::open(folder.path(), key("f")).is_err());
        File::options()
            .write(true)
            .open(folder.path().join(FEATURES))
            .unwrap()
            .set_len(11)
            .unwrap();
        assert!(refused(&key("e")).contains("found 11"));
    }
}
