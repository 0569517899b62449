//! Writes a feature cache. If the program is killed, at most the work of the last seconds is lost.

use std::collections::{HashMap, HashSet};
use std::fs::{DirEntry, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vlm_display::count;

use crate::atomic_file::write_atomically;
use crate::error::DataError;
use crate::feature_cache::{
    CacheManifest, FEATURES, FeatureKey, HASH, HASHES, ImageHash, MANIFEST,
};
use crate::feature_checksums::{CHECKSUM, CHECKSUMS, checksum, damaged_images, write_checksums};

/// Longest time whose work a power cut may cost.
const TIME_BETWEEN_FLUSHES: Duration = Duration::from_secs(10);

/// A feature cache that is being written.
///
/// Features and checksums are flushed to the disk before their hashes, so that every hash in the
/// file has its features and their checksum, whenever the program ends.
#[derive(Debug)]
pub struct FeatureCacheWriter {
    folder: PathBuf,
    manifest: CacheManifest,
    features: File,
    hashes: File,
    checksums: File,
    /// Number of images in the files, damaged ones included.
    num_stored: u64,
    /// The images whose features are undamaged.
    known: HashSet<ImageHash>,
    /// The images whose features differ from their checksum, with their index in the files.
    damaged: HashMap<ImageHash, u64>,
    /// Number of images that had no undamaged features when the cache was opened.
    num_damaged: usize,
    /// Number of those at the end of the files that were removed, so that their hashes are unknown,
    /// and that no appended image can have replaced yet.
    num_lost: usize,
    /// Hashes whose features may not be on the disk yet.
    pending: Vec<u8>,
    /// The checksums of these features.
    pending_checksums: Vec<u8>,
    flushed: Instant,
    num_unverified: usize,
}

impl FeatureCacheWriter {
    /// Begins a cache in `folder`, or continues the one there. Its features are compared with their
    /// checksums; damaged ones are not [known](Self::known), and are replaced when they are
    /// [appended](Self::append) again. What lacks features, hash or checksum at the end of the files
    /// is removed. If the cache was begun by an earlier version, without checksums, it gets those of
    /// the features as they are now.
    ///
    /// # Errors
    /// A folder that holds a cache made otherwise, or other files; a folder that cannot be written.
    pub fn open(folder: &Path, key: FeatureKey) -> Result<Self, DataError> {
        std::fs::create_dir_all(folder).map_err(DataError::io(folder, "create the folder"))?;
        let mut manifest = if folder.join(MANIFEST).exists() {
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
            let manifest = CacheManifest { key, num_images: None, has_checksums: true };
            write_manifest(folder, &manifest)?;
            manifest
        };
        let size = manifest.key.bytes_per_image();
        let bytes_per_image = size as u64;
        let (features, features_len) = open(&folder.join(FEATURES))?;
        let (mut hashes, hashes_len) = open(&folder.join(HASHES))?;
        let mut num_images = (hashes_len / HASH as u64).min(features_len / bytes_per_image);
        let (mut checksums, checksums_len) = open(&folder.join(CHECKSUMS))?;
        let mut num_unverified = 0;
        if manifest.has_checksums {
            num_images = num_images.min(checksums_len / CHECKSUM as u64);
        } else {
            cut(&mut checksums, 0, &folder.join(CHECKSUMS))?;
            write_checksums(folder, &folder.join(FEATURES), size, num_images, &mut checksums)?;
            manifest.has_checksums = true;
            write_manifest(folder, &manifest)?;
            num_unverified = num_images as usize;
        }
        let damaged = damaged_images(folder, &folder.join(FEATURES), size, num_images)?;
        let num_lost = manifest.num_images.unwrap_or(0).saturating_sub(num_images as usize);
        let mut writer = Self {
            folder: folder.to_owned(),
            manifest,
            num_stored: num_images,
            known: HashSet::with_capacity(num_images as usize),
            num_damaged: num_lost + damaged.len(),
            num_lost,
            damaged: HashMap::new(),
            pending: Vec::new(),
            pending_checksums: Vec::new(),
            flushed: Instant::now(),
            features,
            hashes: hashes.try_clone().map_err(DataError::io(folder, "open the hashes"))?,
            checksums,
            num_unverified,
        };
        let mut bytes = vec![0; num_images as usize * HASH];
        hashes
            .read_exact(&mut bytes)
            .map_err(DataError::io(&folder.join(HASHES), "read the hashes"))?;
        let (hashes, _) = bytes.as_chunks::<HASH>();
        for (hash, index) in hashes.iter().zip(0..) {
            if damaged.binary_search(&index).is_ok() {
                writer.damaged.insert(*hash, index);
            } else {
                writer.known.insert(*hash);
            }
        }
        cut(&mut writer.features, num_images * bytes_per_image, &folder.join(FEATURES))?;
        cut(&mut writer.hashes, num_images * HASH as u64, &folder.join(HASHES))?;
        let checksums = num_images * CHECKSUM as u64;
        cut(&mut writer.checksums, checksums, &folder.join(CHECKSUMS))?;
        Ok(writer)
    }

    /// Number of images whose features an earlier version wrote without checksums, so that damage
    /// to them until now is not noticed.
    pub fn num_unverified(&self) -> usize {
        self.num_unverified
    }

    /// Number of images that were damaged when the cache was opened: their features differed from
    /// their checksum, or a file of the cache, which had been complete, ended before them.
    pub fn num_damaged(&self) -> usize {
        self.num_damaged
    }

    /// Number of images whose features are still damaged or missing, because they were not appended
    /// again.
    pub fn num_still_damaged(&self) -> usize {
        self.damaged.len() + self.num_lost
    }

    /// Number of images done, those of earlier runs included and damaged ones excluded.
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
        let size = self.manifest.key.bytes_per_image();
        for (hash, features) in hashes.iter().zip(bytes.chunks_exact(size)) {
            if let Some(index) = self.damaged.remove(hash) {
                self.replace(index, features)?;
            } else {
                let written = self.features.write_all(features);
                written.map_err(DataError::io(&path, "write the features"))?;
                self.pending.extend_from_slice(hash);
                self.pending_checksums.extend_from_slice(&checksum(features));
                self.num_stored += 1;
                self.num_lost = self.num_lost.saturating_sub(1);
            }
            self.known.insert(*hash);
        }
        if self.flushed.elapsed() >= TIME_BETWEEN_FLUSHES {
            self.flush()?;
        }
        Ok(())
    }

    /// Replaces the features of the image with this index. If the program is killed meanwhile, they
    /// differ from their checksum, as before.
    fn replace(&self, index: u64, features: &[u8]) -> Result<(), DataError> {
        let path = self.folder.join(FEATURES);
        self.features
            .write_all_at(features, index * features.len() as u64)
            .map_err(DataError::io(&path, "write the features"))?;
        let path = self.folder.join(CHECKSUMS);
        self.checksums
            .write_all_at(&checksum(features), index * CHECKSUM as u64)
            .map_err(DataError::io(&path, "write the checksums"))
    }

    /// Flushes everything that was added, and then its hashes.
    fn flush(&mut self) -> Result<(), DataError> {
        let [features, hashes, checksums] =
            [FEATURES, HASHES, CHECKSUMS].map(|name| self.folder.join(name));
        self.features.sync_data().map_err(DataError::io(&features, "write the features"))?;
        self.checksums
            .write_all(&self.pending_checksums)
            .and_then(|()| self.checksums.sync_data())
            .map_err(DataError::io(&checksums, "write the checksums"))?;
        self.hashes
            .write_all(&self.pending)
            .and_then(|()| self.hashes.sync_data())
            .map_err(DataError::io(&hashes, "write the hashes"))?;
        self.pending.clear();
        self.pending_checksums.clear();
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
        self.manifest.num_images = Some(self.num_stored as usize);
        write_manifest(&self.folder, &self.manifest)?;
        Ok(self.num_stored as usize)
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
    let entries = folder.read_dir().map_err(DataError::io(folder, "read the folder"))?;
    // Hidden files are those of programs, such as the lock of the one that writes here.
    let is_hidden = |entry: &DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".");
    Ok(!entries.flatten().all(|entry| is_hidden(&entry)))
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
    fn a_flipped_bit_is_an_error_that_names_the_file_and_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        fill(&mut writer, &[1, 2, 3]);
        writer.finish().unwrap();
        let path = folder.path().join(FEATURES);
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..12 * 8 {
            let mut bytes = whole.clone();
            bytes[12 + bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            let cache = FeatureCache::open(folder.path(), &key("e")).unwrap();
            let place = |n| cache.find(&hash(n)).unwrap().unwrap();
            let message = cache.gather(&[place(1), place(2)]).unwrap_err().to_string();
            let hash = blake3::Hash::from_bytes(hash(2)).to_string();
            for part in ["features.bin: ", "image 1 of the cache", "from byte 12", &hash] {
                assert!(message.contains(part), "{part:?} is not in {message}");
            }
            assert!(message.contains("`vlm cache-features`"), "{message}");
            cache.gather(&[place(1), place(3)]).unwrap();
        }
    }

    #[test]
    fn a_cache_of_an_earlier_version_opens_and_gets_checksums_when_it_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        fill(&mut writer, &[1, 2]);
        writer.finish().unwrap();
        let manifest = folder.path().join(MANIFEST);
        let text = std::fs::read_to_string(&manifest).unwrap();
        // As version 0.1.0 wrote it.
        let text = text.replace(",\n  \"has_checksums\": true", "");
        assert!(!text.contains("checksums"), "{text}");
        std::fs::write(&manifest, text).unwrap();
        std::fs::remove_file(folder.path().join(CHECKSUMS)).unwrap();
        let cache = FeatureCache::open(folder.path(), &key("e")).unwrap();
        assert!(!cache.has_checksums());
        cache.gather(&[0, 1]).unwrap();

        let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        assert_eq!(writer.num_unverified(), 2);
        fill(&mut writer, &[3]);
        writer.finish().unwrap();
        let cache = FeatureCache::open(folder.path(), &key("e")).unwrap();
        assert!(cache.has_checksums());
        cache.gather(&[0, 1, 2]).unwrap();
        let path = folder.path().join(FEATURES);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(cache.gather(&[0]).is_err());
        let writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        assert_eq!(writer.num_unverified(), 0);
    }

    /// The features of the image `n` in the cache in `folder`.
    fn read(folder: &Path, n: u8) -> Result<[u8; 12], DataError> {
        let cache = FeatureCache::open(folder, &key("e"))?;
        let mut bytes = [0; 12];
        cache.read(cache.find(&hash(n))?.unwrap(), &mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn only_damaged_images_are_replaced_when_a_cache_is_made_again() {
        // A bit of the features, of a checksum, and of a hash.
        for (file, at) in [(FEATURES, 12), (CHECKSUMS, 7), (HASHES, HASH + 3)] {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
            fill(&mut writer, &[1, 2, 3]);
            writer.finish().unwrap();
            let path = folder.path().join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] ^= 4;
            std::fs::write(&path, bytes).unwrap();

            let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
            let is_of_a_hash = file == HASHES;
            assert_eq!(writer.num_damaged(), usize::from(!is_of_a_hash), "{file}");
            assert!(!writer.known().contains(&hash(2)));
            assert!([1, 3].iter().all(|&n| writer.known().contains(&hash(n))));
            fill(&mut writer, &[2, 4]);
            assert_eq!(writer.num_still_damaged(), 0);
            assert_eq!(writer.finish().unwrap(), if is_of_a_hash { 5 } else { 4 });
            for n in 1..=4 {
                assert_eq!(read(folder.path(), n).unwrap(), [n; 12], "{file}");
            }
        }
    }

    #[test]
    fn damaged_images_that_are_not_made_again_stay_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        fill(&mut writer, &[1, 2]);
        writer.finish().unwrap();
        let path = folder.path().join(FEATURES);
        std::fs::write(&path, [[1; 12], [9; 12]].concat()).unwrap();
        let writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
        assert_eq!((writer.num_damaged(), writer.num_still_damaged()), (1, 1));
        assert_eq!(writer.finish().unwrap(), 2);
        assert_eq!(read(folder.path(), 1).unwrap(), [1; 12]);
        assert!(read(folder.path(), 2).is_err());
    }

    #[test]
    fn a_file_that_is_cut_short_is_refused_and_completed_when_the_cache_is_made_again() {
        for (file, len) in [(FEATURES, 23), (HASHES, HASH + 9), (CHECKSUMS, 7), (CHECKSUMS, 4)] {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
            fill(&mut writer, &[1, 2]);
            writer.finish().unwrap();
            let path = folder.path().join(file);
            File::options().write(true).open(&path).unwrap().set_len(len as u64).unwrap();
            let message = FeatureCache::open(folder.path(), &key("e")).unwrap_err().to_string();
            assert!(message.contains(&format!("{file}: expected")), "{message}");
            assert!(message.contains("run the same `vlm cache-features` again"), "{message}");
            let mut writer = FeatureCacheWriter::open(folder.path(), key("e")).unwrap();
            assert_eq!(writer.num_damaged(), 1, "{file}");
            assert_eq!(writer.num_still_damaged(), 1, "{file}");
            assert_eq!(writer.known().iter().collect::<Vec<_>>(), [&hash(1)]);
            fill(&mut writer, &[2]);
            assert_eq!(writer.num_still_damaged(), 0, "{file}");
            assert_eq!(writer.finish().unwrap(), 2);
            assert_eq!(read(folder.path(), 2).unwrap(), [2; 12]);
        }
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
