//! The work of the loader's threads: making samples of rows, and a batch when its last row is done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::batch::{Batch, ImageData, Padding, Sample, SampleImages};
use crate::chat::ChatTokenizer;
use crate::chat_draws::ChatDraws;
use crate::decode::image_size;
use crate::encoded_row::EncodedRow;
use crate::error::DataError;
use crate::feature_cache::FeatureCache;
use crate::loaded_row::{LoadedImage, LoadedRow};
use crate::order::RowLength;
use crate::preprocess::ImageProcessor;
use crate::reject::{Reject, RejectReason, Rejected};
use crate::row_error::RowError;
use crate::rows::RowImage;
use crate::source::{PreparedRow, RowSource};
use crate::try_row::try_row;

/// What a loader does with the images of its rows.
#[derive(Debug, Clone)]
pub enum ImageReading {
    /// Images are not read; the batches have only their positions.
    Skip,
    /// Images are decoded and preprocessed.
    Pixels(Arc<ImageProcessor>),
    /// Features are taken from a cache.
    Features(Arc<FeatureCache>),
}

impl From<Option<Arc<ImageProcessor>>> for ImageReading {
    fn from(processor: Option<Arc<ImageProcessor>>) -> Self {
        processor.map_or(Self::Skip, Self::Pixels)
    }
}

/// Makes samples of rows and batches of samples.
pub(crate) struct RowMaker {
    pub(crate) source: Arc<dyn RowSource>,
    pub(crate) tokenizer: Arc<ChatTokenizer>,
    pub(crate) images: ImageReading,
    pub(crate) tokens_per_image: usize,
    pub(crate) max_seq_len: usize,
    pub(crate) padding: Padding,
    /// Random changes of the conversations.
    pub(crate) chat_draws: ChatDraws,
    /// Seed of `chat_draws`.
    pub(crate) seed: u64,
}

/// The result for a row: a sample, a rejected row, or an error that ends the run.
type Outcome = Result<Result<Sample, Rejected>, DataError>;

/// The task of making one row of a batch.
pub(crate) struct RowTask {
    pub(crate) batch: Arc<PendingBatch>,
    /// Index in the batch.
    pub(crate) slot: usize,
    /// Index in the source.
    pub(crate) row: usize,
}

/// A batch that several threads are making.
pub(crate) struct PendingBatch {
    epoch: u64,
    index: usize,
    outcomes: Mutex<Vec<Option<Outcome>>>,
    num_missing: AtomicUsize,
}

impl PendingBatch {
    pub(crate) fn new(epoch: u64, index: usize, num_rows: usize) -> Self {
        Self {
            epoch,
            index,
            outcomes: Mutex::new((0..num_rows).map(|_| None).collect()),
            num_missing: AtomicUsize::new(num_rows),
        }
    }

    /// Stores an outcome. Returns all outcomes in order if it was the last one.
    fn fill(&self, slot: usize, outcome: Outcome) -> Option<Vec<Outcome>> {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes[slot] = Some(outcome);
        let is_last = self.num_missing.fetch_sub(1, Ordering::Relaxed) == 1;
        is_last.then(|| outcomes.drain(..).flatten().collect())
    }
}

impl RowMaker {
    /// Makes the row of `task`. Returns its batch if this was the last missing row.
    pub(crate) fn work(&self, task: RowTask) -> Option<Result<Batch, DataError>> {
        let outcomes = task.batch.fill(task.slot, self.make(task.batch.epoch, task.row))?;
        Some(self.collate(task.batch.index, outcomes))
    }

    /// `rows` with their numbers of tokens in `epoch`, sorted by index, because neighbours may be in the same
    /// part of the source. Uses all cores.
    pub(crate) fn lengths(&self, epoch: u64, mut rows: Vec<usize>) -> Vec<RowLength> {
        rows.sort_unstable();
        let measured = |row| (row, self.num_tokens(epoch, row));
        rows.into_par_iter().with_min_len(16).map(measured).collect()
    }

    /// Number of tokens of a row, the same for every kind of source; 0 if the row cannot be used,
    /// which is reported when it is made.
    fn num_tokens(&self, epoch: u64, row: usize) -> usize {
        let changes = self.chat_draws.of_row(self.seed, epoch, row);
        let count = || {
            let prepared = self.source.num_tokens(row).filter(|_| changes.is_empty());
            prepared.or_else(|| {
                let turns = self.source.turns(row).ok()?;
                self.tokenizer.num_changed_tokens(&turns, changes, self.tokens_per_image).ok()
            })
        };
        let num_tokens = catch_unwind(AssertUnwindSafe(count)).ok().flatten();
        num_tokens.unwrap_or(0).min(self.max_seq_len)
    }

    /// The batch of `rows`, made in this thread.
    pub(crate) fn make_batch(
        &self,
        epoch: u64,
        index: usize,
        rows: &[usize],
    ) -> Result<Batch, DataError> {
        self.collate(index, rows.iter().map(|&row| self.make(epoch, row)).collect())
    }

    fn make(&self, epoch: u64, row: usize) -> Outcome {
        try_row(self.source.as_ref(), row, || self.try_make(epoch, row))
    }

    fn try_make(&self, epoch: u64, index: usize) -> Result<Sample, RowError> {
        let (encoded, images) = self.encode(epoch, index)?;
        let images = match &self.images {
            ImageReading::Skip => SampleImages::None,
            ImageReading::Pixels(processor) => {
                let crop = |(k, image)| self.crop(processor, index, k, image);
                SampleImages::Pixels(images.iter().enumerate().map(crop).collect::<Result<_, _>>()?)
            }
            ImageReading::Features(cache) => {
                let place = |(k, image)| self.place(cache, index, k, image);
                SampleImages::Cached(
                    images.iter().enumerate().map(place).collect::<Result<_, _>>()?,
                )
            }
        };
        Ok(Sample { row: index, encoded, images })
    }

    fn crop(
        &self,
        processor: &ImageProcessor,
        index: usize,
        k: usize,
        image: &RowImage,
    ) -> Result<Vec<u8>, RowError> {
        let bytes = self.source.image_bytes(index, k, image)?;
        let cropped = processor.crop_u8(&bytes).map_err(|reject| match reject.reason {
            RejectReason::MissingImage => reject,
            reason => Reject::new(reason, format!("{:?}: {}", image.name, reject.detail)),
        });
        Ok(cropped?)
    }

    /// The index of the image in the cache.
    fn place(
        &self,
        cache: &FeatureCache,
        index: usize,
        k: usize,
        image: &RowImage,
    ) -> Result<usize, RowError> {
        let hash = match image.hash {
            Some(hash) => hash,
            None => blake3::hash(&self.source.image_bytes(index, k, image)?).into(),
        };
        let missing = || {
            Reject::new(
                RejectReason::NotInFeatureCache,
                format!("the feature cache does not have {:?}", image.name),
            )
        };
        Ok(cache.find(&hash)?.ok_or_else(missing)?)
    }

    /// The row's token ids, from the source or made here, and its images, which are not opened.
    /// Prepared rows have the ids of the unchanged conversation.
    fn encode(&self, epoch: u64, index: usize) -> Result<(EncodedRow, Vec<RowImage>), RowError> {
        let (tokens_per_image, max_seq_len) = (self.tokens_per_image, self.max_seq_len);
        let changes = self.chat_draws.of_row(self.seed, epoch, index);
        if changes.is_empty()
            && let Some(PreparedRow { encoded, images }) = self.source.prepared_row(index)?
        {
            encoded.check(self.tokenizer.vocab_size(), images.len())?;
            return Ok((encoded.cut(max_seq_len, tokens_per_image)?, images));
        }
        let row = self.source.row(index)?;
        let encoded =
            self.tokenizer.encode_changed_row(&row, changes, tokens_per_image, max_seq_len)?;
        Ok((encoded, row.images))
    }

    /// Row `index` as [`Self::make`] makes it in the first epoch, with the names and sizes of its images.
    pub(crate) fn load(&self, index: usize) -> Result<Result<LoadedRow, Rejected>, DataError> {
        let ImageReading::Pixels(processor) = &self.images else {
            return Err(DataError::Internal("the loader does not preprocess images".into()));
        };
        try_row(self.source.as_ref(), index, || {
            let Sample { encoded, images: made, .. } = self.try_make(0, index)?;
            let crops = match made {
                SampleImages::Pixels(crops) => crops,
                SampleImages::None | SampleImages::Cached(_) => Vec::new(),
            };
            let (_, images) = self.encode(0, index)?;
            let load = |(k, (image, pixels)): (usize, (&RowImage, Vec<u8>))| {
                let bytes = self.source.image_bytes(index, k, image)?;
                let (width, height) = image_size(&bytes).unwrap_or_default();
                let side = processor.image_size() as u32;
                Ok(LoadedImage { name: image.name.clone(), width, height, side, pixels })
            };
            let images = images.iter().zip(crops).enumerate().map(load);
            let images = images.collect::<Result<_, RowError>>()?;
            let turns = self.source.turns(index)?;
            let changes = self.chat_draws.of_row(self.seed, 0, index);
            let num_tokens =
                self.tokenizer.num_changed_tokens(&turns, changes, self.tokens_per_image)?;
            Ok(LoadedRow { encoded, num_tokens, images })
        })
    }

    fn collate(&self, index: usize, outcomes: Vec<Outcome>) -> Result<Batch, DataError> {
        let (mut samples, mut rejected) = (Vec::with_capacity(outcomes.len()), Vec::new());
        for outcome in outcomes {
            match outcome? {
                Ok(sample) => samples.push(sample),
                Err(row) => rejected.push(row),
            }
        }
        let places: Vec<usize> = samples
            .iter()
            .flat_map(|sample| match &sample.images {
                SampleImages::Cached(places) => &places[..],
                _ => &[],
            })
            .copied()
            .collect();
        let pad_token_id = self.tokenizer.pad_token_id();
        let mut batch = Batch::collate(
            index,
            samples,
            rejected,
            self.padding,
            self.max_seq_len - 1,
            pad_token_id,
        );
        if let (ImageReading::Features(cache), false) = (&self.images, places.is_empty()) {
            batch.image_data = ImageData::Features(cache.gather(&places)?);
        }
        Ok(batch)
    }
}
