//! What the loader's threads do: rows to samples, and the last one of a batch puts it together.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender};

use crate::batch::{Batch, Sample};
use crate::chat::{ChatTokenizer, EncodedRow};
use crate::error::DataError;
use crate::preprocess::ImageProcessor;
use crate::reject::{Reject, RejectReason, Rejected};
use crate::rows::RowImage;
use crate::source::{PreparedRow, RowSource};

/// Makes samples of rows and batches of samples.
pub(crate) struct RowMaker {
    pub(crate) source: Arc<dyn RowSource>,
    pub(crate) tokenizer: Arc<ChatTokenizer>,
    pub(crate) processor: Option<Arc<ImageProcessor>>,
    pub(crate) tokens_per_image: usize,
    pub(crate) max_seq_len: usize,
    /// T to fill up to; `None` for the longest row.
    pub(crate) max_len: Option<usize>,
}

/// A row that was tried: usable, set aside, or the end of the run.
type Outcome = Result<Result<Sample, Rejected>, DataError>;

/// One row of a batch, to be made.
pub(crate) struct Task {
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

/// A batch that is done.
pub(crate) struct Made {
    pub(crate) index: usize,
    pub(crate) batch: Result<Batch, DataError>,
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

/// A worker's loop: ends with its queue, or early when `stop` is set.
pub(crate) fn work(
    maker: &RowMaker,
    tasks: &Receiver<Task>,
    made: &Sender<Made>,
    stop: &AtomicBool,
) {
    for task in tasks {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if let Some(outcomes) = task.batch.fill(task.slot, maker.make(task.row)) {
            let index = task.batch.index;
            let batch = maker.collate(index, outcomes);
            if made.send(Made { index, batch }).is_err() {
                return;
            }
        }
    }
}

impl RowMaker {
    /// The batch of `rows`, made in this thread.
    pub(crate) fn make_batch(&self, index: usize, rows: &[usize]) -> Result<Batch, DataError> {
        self.collate(index, rows.iter().map(|&row| self.make(row)).collect())
    }

    fn make(&self, row: usize) -> Outcome {
        // A decoder that panics on a hostile file must not take the run with it unnamed.
        match catch_unwind(AssertUnwindSafe(|| self.try_make(row))) {
            Ok(Ok(sample)) => Ok(Ok(sample)),
            Ok(Err(Reject { reason, detail })) => {
                Ok(Err(Rejected { row, location: self.source.locate(row), reason, detail }))
            }
            Err(panic) => Err(DataError::WorkerPanic {
                location: self.source.locate(row),
                message: panic_message(panic.as_ref()),
            }),
        }
    }

    fn try_make(&self, index: usize) -> Result<Sample, Reject> {
        let (encoded, images) = self.encode(index)?;
        let crop = |(k, image): (usize, &RowImage), processor: &ImageProcessor| {
            let bytes = self.source.image_bytes(index, k, image)?;
            processor.crop_u8(&bytes).map_err(|reject| match reject.reason {
                RejectReason::MissingImage => reject,
                reason => Reject::new(reason, format!("{:?}: {}", image.name, reject.detail)),
            })
        };
        let pixels = match self.processor.as_deref() {
            None => Vec::new(),
            Some(processor) => images
                .iter()
                .enumerate()
                .map(|image| crop(image, processor))
                .collect::<Result<_, _>>()?,
        };
        Ok(Sample { row: index, encoded, pixels })
    }

    /// The row's token ids, as the source holds them or made here, and its images, unopened.
    fn encode(&self, index: usize) -> Result<(EncodedRow, Vec<RowImage>), Reject> {
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
        let pad_token_id = self.tokenizer.pad_token_id();
        Ok(Batch::collate(index, samples, rejected, self.max_len, pad_token_id))
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}
