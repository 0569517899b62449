//! What the loader's threads do: rows to samples, and the last one of a batch puts it together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::batch::{Batch, ImageData, Padding, Sample, SampleImages};
use crate::chat::{ChatTokenizer, EncodedRow};
use crate::error::DataError;
use crate::feature_cache::FeatureCache;
use crate::order::RowLength;
use crate::ordered_map::panic_message;
use crate::preprocess::ImageProcessor;
use crate::reject::{Reject, RejectReason, Rejected};
use crate::row_error::RowError;
use crate::rows::RowImage;
use crate::source::{PreparedRow, RowSource};

/// What a loader does about the images of its rows.
#[derive(Debug, Clone)]
pub enum ImageReading {
    /// Nothing: their places are in the batches, and they are not.
    Skip,
    /// Decode and preprocess them.
    Pixels(Arc<ImageProcessor>),
    /// Take their features from a cache.
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
}

/// A row that was tried: usable, set aside, or the end of the run.
type Outcome = Result<Result<Sample, Rejected>, DataError>;

/// One row of a batch, to be made.
pub(crate) struct RowTask {
    pub(crate) batch: Arc<PendingBatch>,
    /// Place in the batch.
    pub(crate) slot: usize,
    /// Index in the source.
    pub(crate) row: usize,
}

/// A batch that some threads are filling.
pub(crate) struct PendingBatch {
    index: usize,
    outcomes: Mutex<Vec<Option<Outcome>>>,
    num_missing: AtomicUsize,
}

impl PendingBatch {
    pub(crate) fn new(index: usize, num_rows: usize) -> Self {
        Self {
            index,
            outcomes: Mutex::new((0..num_rows).map(|_| None).collect()),
            num_missing: AtomicUsize::new(num_rows),
        }
    }

    /// Puts in an outcome; all of them, in order, when it was the last one.
    fn fill(&self, slot: usize, outcome: Outcome) -> Option<Vec<Outcome>> {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes[slot] = Some(outcome);
        let is_last = self.num_missing.fetch_sub(1, Ordering::Relaxed) == 1;
        is_last.then(|| outcomes.drain(..).flatten().collect())
    }
}

impl RowMaker {
    /// Makes the row of `task`; its batch, when this was the last row that the batch waited for.
    pub(crate) fn work(&self, task: RowTask) -> Option<Result<Batch, DataError>> {
        let outcomes = task.batch.fill(task.slot, self.make(task.row))?;
        Some(self.collate(task.batch.index, outcomes))
    }

    /// `rows` with their numbers of tokens, in the order of the source: neighbours may lie in one
    /// piece of it. All cores take part.
    pub(crate) fn lengths(&self, mut rows: Vec<usize>) -> Vec<RowLength> {
        rows.sort_unstable();
        rows.into_par_iter().with_min_len(16).map(|row| (row, self.num_tokens(row))).collect()
    }

    /// Tokens of a row, the same whatever kind of source it lies in; none where there is something
    /// wrong with it, which is told when the row is made.
    fn num_tokens(&self, row: usize) -> usize {
        let count = || {
            self.source.num_tokens(row).or_else(|| {
                let turns = self.source.turns(row).ok()?;
                self.tokenizer.num_tokens(&turns, self.tokens_per_image).ok()
            })
        };
        let num_tokens = catch_unwind(AssertUnwindSafe(count)).ok().flatten();
        num_tokens.unwrap_or(0).min(self.max_seq_len)
    }

    /// The batch of `rows`, made in this thread.
    pub(crate) fn make_batch(&self, index: usize, rows: &[usize]) -> Result<Batch, DataError> {
        self.collate(index, rows.iter().map(|&row| self.make(row)).collect())
    }

    fn make(&self, row: usize) -> Outcome {
        // A decoder that panics on a hostile file must not take the run with it unnamed.
        match catch_unwind(AssertUnwindSafe(|| self.try_make(row))) {
            Ok(Ok(sample)) => Ok(Ok(sample)),
            Ok(Err(error)) => {
                let location = self.source.locate(row);
                let Reject { reason, detail } = error.at(location.clone())?;
                Ok(Err(Rejected { row, location, reason, detail }))
            }
            Err(panic) => Err(DataError::WorkerPanic {
                location: self.source.locate(row),
                message: panic_message(panic.as_ref()),
            }),
        }
    }

    fn try_make(&self, index: usize) -> Result<Sample, RowError> {
        let (encoded, images) = self.encode(index)?;
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

    /// Where the image's features are.
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
                format!("{:?} has no features in the cache", image.name),
            )
        };
        Ok(cache.find(&hash)?.ok_or_else(missing)?)
    }

    /// The row's token ids, as the source holds them or made here, and its images, unopened.
    fn encode(&self, index: usize) -> Result<(EncodedRow, Vec<RowImage>), RowError> {
        if let Some(PreparedRow { encoded, images }) = self.source.prepared_row(index)? {
            return Ok((encoded.cut(self.max_seq_len, self.tokens_per_image)?, images));
        }
        let row = self.source.row(index)?;
        let encoded = self.tokenizer.encode_row(&row, self.tokens_per_image, self.max_seq_len)?;
        Ok((encoded, row.images))
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
