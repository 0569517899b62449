//! Batches of an epoch, made ahead of their use by worker threads. The batches and their order are
//! the same whatever the number of threads.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::batch::{Batch, Padding};
use crate::chat::ChatTokenizer;
use crate::error::DataError;
use crate::fingerprint::fingerprint;
use crate::order::{EpochOrder, OrderConfig, share};
use crate::ordered_map::OrderedMap;
use crate::reject_budget::{DEFAULT_MAX_REJECTED_FRACTION, RejectBudget};
use crate::source::{Encoding, RowSource};
use crate::windows::Windows;
use crate::worker::{ImageReading, PendingBatch, RowMaker, RowTask};

/// Rows within which similar lengths are put together unless told otherwise. `cargo xtask bench data
/// --only padding` says what padding it leaves.
pub const DEFAULT_BUCKET_WINDOW: usize = 2048;

/// How a [`Loader`] makes batches.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderConfig {
    /// Rows a batch, of this process.
    pub batch_size: usize,
    /// Which of the processes that train together this is, from 0.
    pub rank: usize,
    /// How many processes train together. At each step they share a global batch of
    /// `world_size` · `batch_size` rows, which depends on that product alone.
    pub world_size: usize,
    /// Tokens a row is cut at.
    pub max_seq_len: usize,
    /// Tokens an image has in the prompt: the features that the model puts there.
    pub tokens_per_image: usize,
    /// How far rows are filled up.
    pub padding: Padding,
    /// Whether the order is drawn from (seed, epoch), or is the source's.
    pub shuffle: bool,
    /// Of the order.
    pub seed: u64,
    /// Leave out the last batch when it is not full.
    pub drop_last: bool,
    /// Threads that decode and tokenize ahead; 0 does it in the caller's thread, when asked.
    pub num_workers: usize,
    /// Batches that may be ready or in the making.
    pub prefetch_batches: usize,
    /// Rows within which similar lengths are put together; 0: none. Only with `shuffle`.
    pub bucket_window: usize,
    /// An epoch ends with an error when more than this share of its rows was rejected; 0 allows none.
    pub max_rejected_fraction: f64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch_size: 16,
            rank: 0,
            world_size: 1,
            max_seq_len: 640,
            tokens_per_image: 196,
            padding: Padding::Longest,
            shuffle: true,
            seed: 1337,
            drop_last: false,
            num_workers: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch_batches: 4,
            bucket_window: DEFAULT_BUCKET_WINDOW,
            max_rejected_fraction: DEFAULT_MAX_REJECTED_FRACTION,
        }
    }
}

impl LoaderConfig {
    fn order(&self) -> OrderConfig {
        OrderConfig {
            global_batch_size: self.batch_size.saturating_mul(self.world_size),
            shuffle: self.shuffle,
            seed: self.seed,
            drop_last: self.drop_last,
            bucket_window: self.bucket_window,
        }
    }

    fn validate(&self, num_rows: usize) -> Result<(), DataError> {
        let settings = |text: String| Err(DataError::Settings(text));
        if self.batch_size == 0 || self.tokens_per_image == 0 {
            return settings("batch-size and the tokens of an image must be at least 1".into());
        }
        if self.rank >= self.world_size {
            return settings(format!(
                "rank {} of {} processes; ranks count from 0",
                self.rank, self.world_size
            ));
        }
        if self.max_seq_len < 2 {
            return settings(format!(
                "max-seq-len is {}; a row needs a token to predict and one before it",
                self.max_seq_len
            ));
        }
        if !(0.0..=1.0).contains(&self.max_rejected_fraction) {
            return settings(format!(
                "max-rejected-fraction is {}; it must be from 0 to 1",
                self.max_rejected_fraction
            ));
        }
        if self.order().num_batches(num_rows) == 0 {
            return settings(format!(
                "{num_rows} rows make no full batch of {}; lower batch-size, or do without \
                 drop-last",
                self.order().global_batch_size
            ));
        }
        Ok(())
    }
}

/// Makes the batches of any epoch of a source.
pub struct Loader {
    maker: Arc<RowMaker>,
    config: LoaderConfig,
}

impl Loader {
    /// `images`: an image processor, a feature cache, or `None`, and images are not read.
    ///
    /// # Errors
    /// Settings that make no batch; a source of token ids that another tokenizer, or other settings,
    /// made.
    pub fn new(
        source: Arc<dyn RowSource>,
        tokenizer: Arc<ChatTokenizer>,
        images: impl Into<ImageReading>,
        config: LoaderConfig,
    ) -> Result<Self, DataError> {
        config.validate(source.len())?;
        source.check_encoding(&Encoding {
            tokenizer: &tokenizer,
            tokens_per_image: config.tokens_per_image,
            max_seq_len: config.max_seq_len,
        })?;
        let maker = RowMaker {
            source,
            tokenizer,
            images: images.into(),
            tokens_per_image: config.tokens_per_image,
            max_seq_len: config.max_seq_len,
            padding: config.padding,
        };
        Ok(Self { maker: Arc::new(maker), config })
    }

    /// The settings.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Rows of the source, unusable ones included.
    pub fn num_rows(&self) -> usize {
        self.maker.source.len()
    }

    /// Batches an epoch has, the same on every rank.
    pub fn batches_per_epoch(&self) -> usize {
        self.config.order().num_batches(self.num_rows())
    }

    /// A hash of the rows; see [`crate::fingerprint`].
    ///
    /// # Errors
    /// A disk that fails.
    pub fn fingerprint(&self) -> Result<String, DataError> {
        fingerprint(self.maker.source.as_ref())
    }

    /// Where a person finds row `index`: `captions.jsonl:17`.
    pub fn locate(&self, index: usize) -> String {
        self.maker.source.locate(index)
    }

    /// The rows that all ranks together take as batch `index` of `epoch`.
    pub fn global_batch(&self, epoch: u64, index: usize) -> Vec<usize> {
        let order = EpochOrder::new(self.config.order(), self.num_rows(), epoch);
        Windows::new(Arc::clone(&self.maker), order, false).global_batch(index)
    }

    /// This rank's batches of `epoch` from number `start_batch` on. A batch whose rows were all
    /// rejected, or of which there were too few for every rank, comes too, empty, so that numbers
    /// hold. After an error there is nothing more. Dropping the iterator ends its threads.
    pub fn epoch(&self, epoch: u64, start_batch: usize) -> Epoch {
        let order = EpochOrder::new(self.config.order(), self.num_rows(), epoch);
        Epoch::new(Arc::clone(&self.maker), &self.config, order, start_batch)
    }
}

/// The batches of an epoch, in order; see [`Loader::epoch`].
pub struct Epoch {
    maker: Arc<RowMaker>,
    windows: Windows,
    num_batches: usize,
    rank: usize,
    world_size: usize,
    /// Next batch to return.
    next: usize,
    /// Next batch to give to the workers.
    next_planned: usize,
    prefetch: usize,
    /// The worker threads; without them batches are made in the caller's thread.
    workers: Option<OrderedMap<RowTask, Option<Result<Batch, DataError>>>>,
    /// Rows of each batch from `next` to `next_planned`.
    planned_rows: VecDeque<usize>,
    budget: RejectBudget,
    /// Whether it started at the epoch's first batch.
    is_whole: bool,
    is_over: bool,
}

impl Epoch {
    fn new(
        maker: Arc<RowMaker>,
        config: &LoaderConfig,
        order: EpochOrder,
        start_batch: usize,
    ) -> Self {
        let num_batches = order.num_batches();
        let is_over = start_batch >= num_batches;
        let num_workers = if is_over { 0 } else { config.num_workers };
        Self {
            next: start_batch,
            next_planned: start_batch,
            prefetch: config.prefetch_batches.max(1),
            workers: start_workers(&maker, num_workers),
            planned_rows: VecDeque::new(),
            budget: RejectBudget::new(config.max_rejected_fraction),
            is_whole: start_batch == 0,
            is_over,
            windows: Windows::new(Arc::clone(&maker), order, num_workers > 0),
            maker,
            num_batches,
            rank: config.rank,
            world_size: config.world_size,
        }
    }

    /// This rank's rows of batch `index`.
    fn rows(&mut self, index: usize) -> Vec<usize> {
        share(&self.windows.global_batch(index), self.rank, self.world_size).to_vec()
    }

    /// Gives the workers the rows of the next batches, at most `prefetch` batches ahead: each one in
    /// memory may hold megabytes of pixels.
    fn plan(&mut self) {
        let end = (self.next + self.prefetch).min(self.num_batches);
        for index in self.next_planned..end {
            let rows = self.rows(index);
            let Some(workers) = &mut self.workers else { return };
            self.planned_rows.push_back(rows.len());
            let batch = Arc::new(PendingBatch::new(index, rows.len()));
            for (slot, row) in rows.into_iter().enumerate() {
                workers.submit(RowTask { batch: Arc::clone(&batch), slot, row });
            }
        }
        self.next_planned = self.next_planned.max(end);
    }

    /// Batch `self.next`: made here, or waited for.
    fn take_next(&mut self) -> Result<Batch, DataError> {
        if self.workers.is_some() {
            self.plan();
        }
        let (Some(workers), Some(num_rows @ 1..)) =
            (&mut self.workers, self.planned_rows.pop_front())
        else {
            let rows = self.rows(self.next);
            return self.maker.make_batch(self.next, &rows);
        };
        // All results of the batch are taken; the thread that made its last row returned the batch.
        let results = (0..num_rows).filter_map(|_| workers.wait_next()?);
        results.last().unwrap_or_else(|| {
            Err(DataError::Internal("the loader's threads ended before their work did".into()))
        })
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        if self.next == self.num_batches {
            self.is_over = true;
            // An epoch that was begun in its middle counts only the rows since.
            let checked = if self.is_whole { self.budget.at_end() } else { Ok(()) };
            return checked.err().map(Err);
        }
        let batch = self.take_next().and_then(|batch| {
            self.budget.add(batch.batch_size, &batch.rejected)?;
            Ok(batch)
        });
        self.next += 1;
        self.is_over = batch.is_err();
        Some(batch)
    }
}

/// The loader's threads; `None` when none is asked for or none can be started.
fn start_workers(
    maker: &Arc<RowMaker>,
    num_workers: usize,
) -> Option<OrderedMap<RowTask, Option<Result<Batch, DataError>>>> {
    if num_workers == 0 {
        return None;
    }
    let maker = Arc::clone(maker);
    let workers = OrderedMap::start("loader", num_workers, move |task| maker.work(task));
    workers
        .inspect_err(|error| tracing::warn!("the loader works without threads of its own: {error}"))
        .ok()
}
