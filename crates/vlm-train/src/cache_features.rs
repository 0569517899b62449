//! Computes the vision encoder's features of every image of a dataset once and stores them in a
//! cache on disk. Training reads them with the setting `features`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tch::{Device, Kind};
use vlm_data::{
    DataPaths, FeatureCacheWriter, FeatureKey, FeaturesDtype, ImageCount, ImageHash,
    ImageProcessor, ImageScan, RejectLog, RowOptions, RowSource, ScannedChunk, count_images,
};
use vlm_display::count;
use vlm_model::vision::VisionEncoder;
use vlm_model::{ModelError, OpenClip, VisionConfig};

use crate::TrainError;
use crate::dir_lock::DirLock;
use vlm_infer::build_encoder;
use vlm_infer::device_batch::{Normalizer, features_kind};
use vlm_infer::image_processor;

/// Settings of [`cache_features`].
#[derive(Debug, Clone)]
pub struct CacheFeaturesConfig {
    /// Paths of the rows.
    pub data_path: DataPaths,
    /// Folder that the image names in the rows are relative to.
    pub images_path: Option<PathBuf>,
    /// How the rows are read.
    pub rows: RowOptions,
    /// Folder of the vision encoder, in the format of Hugging Face or open_clip.
    pub vision: PathBuf,
    /// Side in pixels of the images for the encoder; `None` for the one that it was trained with.
    pub image_size: Option<i64>,
    /// Folder of the cache.
    pub output: PathBuf,
    /// Type in which the features are stored.
    pub dtype: FeaturesDtype,
    /// Number of images in one forward pass.
    pub batch_size: usize,
    /// Device of the encoder, which computes in float32.
    pub device: Device,
    /// Number of threads that read and decode images.
    pub num_workers: usize,
}

/// Result of [`cache_features`].
#[derive(Debug, Clone, Copy)]
pub struct Cached {
    /// Number of distinct images in the cache.
    pub num_images: usize,
    /// Number of images that this run added to it.
    pub num_new: usize,
    /// Number of rows with an image that cannot be used.
    pub rejected_rows: usize,
    /// Size of all features, in bytes.
    pub bytes: u64,
    /// Whether all rows were read; otherwise the run was stopped.
    pub is_finished: bool,
}

/// Estimated size and duration, computed before the first image is encoded.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    /// Number of rows and images.
    pub images: ImageCount,
    /// Number of images that are already in the cache.
    pub num_done: usize,
    /// Size of the features of all images, in bytes.
    pub bytes: u64,
    /// Time to encode the missing images, estimated from one measured batch.
    pub time: Duration,
}

/// A run of [`cache_features`].
struct Work {
    encoder: VisionEncoder,
    normalizer: Normalizer,
    writer: FeatureCacheWriter,
    config: CacheFeaturesConfig,
    rejects: RejectLog,
    /// Images that are read but not encoded yet: their hashes and pixels.
    pending: Vec<(ImageHash, Vec<u8>)>,
    rejected_rows: usize,
}

/// Progress of [`cache_features`].
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Number of rows read so far.
    pub rows: usize,
    /// Number of rows of the dataset.
    pub num_rows: usize,
    /// Number of distinct images in the cache.
    pub num_images: usize,
}

/// Creates the cache, or continues an unfinished one; features that differ from their checksum are
/// computed again. `announce` is called once before the first
/// image is encoded, and `report_progress` after each chunk of rows. Setting `stop` ends the run
/// early and keeps all features that were computed.
///
/// # Errors
/// Data, encoder or folder that cannot be used; a full disk. Features that were already written are
/// kept.
pub fn cache_features(
    config: CacheFeaturesConfig,
    stop: &AtomicBool,
    announce: &mut dyn FnMut(&Estimate),
    report_progress: &mut dyn FnMut(Progress),
) -> Result<Cached, TrainError> {
    vlm_torch::keep_freed_memory();
    let (encoder, vision) = build_encoder(&config.vision, config.image_size, config.device)?;
    let processor = Arc::new(image_processor(&config.vision, &vision)?);
    let source = config.data_path.open_with(config.images_path.as_deref(), &config.rows)?;
    let key = feature_key(&config.vision, &vision, &processor, config.dtype)?;
    // Two processes that write to one cache would mix up their images.
    let _lock = DirLock::take("output", &config.output, false)?;
    let writer = FeatureCacheWriter::open(&config.output, key).map_err(usage)?;
    if writer.num_unverified() > 0 {
        tracing::warn!(
            "{}: the features of {} were written by an earlier version, without checksums; they got \
             checksums as they are now, and damage before this moment is not noticed",
            config.output.display(),
            count(writer.num_unverified(), "image")
        );
    }
    if writer.num_damaged() > 0 {
        tracing::warn!(
            "{}: the features of {} are damaged; they are computed again",
            config.output.display(),
            count(writer.num_damaged(), "image")
        );
    }
    let num_before = writer.num_images();
    let scan = ImageScan::start(
        Arc::clone(&source),
        Arc::clone(&processor),
        writer.known().clone(),
        config.num_workers,
    )?;
    let mut work = Work {
        normalizer: Normalizer::new(config.device, &processor),
        rejects: RejectLog::open(&config.output.join("rejected.jsonl"))?,
        pending: Vec::new(),
        rejected_rows: 0,
        encoder,
        writer,
        config,
    };
    let estimate = work.estimate(source.as_ref())?;
    announce(&estimate);
    let is_finished = work.run(scan, source.len(), stop, report_progress)?;
    let bytes_per_image = work.writer.key().bytes_per_image() as u64;
    let num_images = work.writer.num_images();
    let rejected_rows = work.rejected_rows;
    if is_finished {
        if work.writer.num_still_damaged() > 0 {
            tracing::warn!(
                "{}: the features of {} are still damaged, because these rows do not have the images",
                work.config.output.display(),
                count(work.writer.num_still_damaged(), "image")
            );
        }
        work.writer.finish()?;
    } else {
        work.writer.pause()?;
    }
    Ok(Cached {
        num_images,
        num_new: num_images - num_before,
        rejected_rows,
        bytes: num_images as u64 * bytes_per_image,
        is_finished,
    })
}

impl Work {
    /// Counts the images, and measures the encoder on a batch of grey ones.
    fn estimate(&self, source: &dyn RowSource) -> Result<Estimate, TrainError> {
        let images = count_images(source);
        let num_done = self.writer.num_images();
        let num_missing = images.distinct.saturating_sub(num_done);
        let batch = self.config.batch_size.min(num_missing.max(1));
        let blank = vec![128; self.normalizer.bytes_per_image() * batch];
        let mut fastest = Duration::MAX;
        for _ in 0..2 {
            let started = Instant::now();
            self.encode(&blank)?;
            fastest = fastest.min(started.elapsed());
        }
        let bytes_per_image = self.writer.key().bytes_per_image() as u64;
        Ok(Estimate {
            images,
            num_done,
            bytes: images.distinct as u64 * bytes_per_image,
            time: fastest.mul_f64(num_missing as f64 / batch as f64),
        })
    }

    /// Encodes all images of the scan. Returns `false` if it was stopped.
    fn run(
        &mut self,
        scan: ImageScan,
        num_rows: usize,
        stop: &AtomicBool,
        report_progress: &mut dyn FnMut(Progress),
    ) -> Result<bool, TrainError> {
        let mut progress = Progress { rows: 0, num_rows, num_images: self.writer.num_images() };
        for chunk in scan {
            let ScannedChunk { num_rows, images, rejected } = chunk?;
            for row in &rejected {
                self.rejected_rows += usize::from(self.rejects.record(row)?);
            }
            self.pending.extend(images);
            while self.pending.len() >= self.config.batch_size {
                self.encode_pending(self.config.batch_size)?;
                if stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
            }
            progress.rows += num_rows;
            progress.num_images = self.writer.num_images();
            report_progress(progress);
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
        }
        self.encode_pending(self.pending.len())?;
        Ok(true)
    }

    /// Encodes the first `count` pending images and appends their features to the cache.
    fn encode_pending(&mut self, count: usize) -> Result<(), TrainError> {
        if count == 0 {
            return Ok(());
        }
        let batch: Vec<_> = self.pending.drain(..count).collect();
        let pixels: Vec<u8> = batch.iter().flat_map(|(_, crop)| crop).copied().collect();
        let hashes: Vec<ImageHash> = batch.iter().map(|&(hash, _)| hash).collect();
        let features = self.encode(&pixels)?;
        Ok(self.writer.append(&hashes, &features)?)
    }

    /// The features of `pixels` `[N, S, S, 3]`: the bytes of a tensor `[N, P, V]`.
    fn encode(&self, pixels: &[u8]) -> Result<Vec<u8>, TrainError> {
        let pixels = self.normalizer.normalized(pixels)?;
        let features = tch::no_grad(|| self.encoder.patch_features(&pixels));
        let features = features.to_kind(features_kind(self.config.dtype));
        // A value out of float16's range would make every later loss infinite.
        let is_finite = features.to_kind(Kind::Float).isfinite().all();
        if !bool::try_from(is_finite).map_err(ModelError::from)? {
            return Err(TrainError::Failed(format!(
                "the features are not finite in {:?}; set `features_dtype` to bfloat16 or float32, \
                 or check the encoder's weights",
                self.config.dtype
            )));
        }
        Ok(vlm_torch::tensor_to_bytes(&features.to_device(Device::Cpu))?)
    }
}

/// The key of a feature cache: the encoder, the preprocessing and the type that its features are
/// made with. A cache with another key cannot be used.
///
/// # Errors
/// Files of the encoder that cannot be read.
pub fn feature_key(
    vision_dir: &Path,
    vision: &VisionConfig,
    processor: &ImageProcessor,
    dtype: FeaturesDtype,
) -> Result<FeatureKey, TrainError> {
    Ok(FeatureKey::new(
        hash_of_encoder(vision_dir)?,
        processor.hash().to_owned(),
        dtype,
        vision.num_patches() as usize,
        vision.hidden_size as usize,
    ))
}

/// BLAKE3 of the encoder's configuration and weights files, in hexadecimal.
fn hash_of_encoder(folder: &Path) -> Result<String, TrainError> {
    let open_clip = OpenClip::beside(folder).map_err(ModelError::from)?;
    let config = open_clip.map_or(folder.join("config.json"), |tower| tower.path().to_owned());
    let mut files = vec![config];
    for entry in std::fs::read_dir(folder).map_err(|e| TrainError::at(folder, e))? {
        let path = entry.map_err(|e| TrainError::at(folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if [".safetensors", ".bin", ".pth", ".index.json"].iter().any(|end| name.ends_with(end)) {
            files.push(path);
        }
    }
    files[1..].sort();
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let file = std::fs::File::open(&path).map_err(|e| TrainError::at(&path, e))?;
        hasher.update_reader(file).map_err(|e| TrainError::at(&path, e))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The error for a feature cache that cannot be used: a usage error, unless a disk failed.
pub(crate) fn usage(error: vlm_data::DataError) -> TrainError {
    TrainError::unusable(error.to_string(), &error)
}
