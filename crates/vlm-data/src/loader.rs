//! Makes the batches of an epoch ahead of their use in worker threads. The batches and their order
//! do not depend on the number of threads.

use std::collections::VecDeque;
use std::sync::Arc;

use vlm_display::count;

use crate::batch::{Batch, Padding};
use crate::chat::ChatTokenizer;
use crate::chat_draws::ChatDraws;
use crate::error::DataError;
use crate::fingerprint::fingerprint;
use crate::loaded_row::LoadedRow;
use crate::order::{EpochOrder, OrderConfig, rows_of_rank};
use crate::ordered_map::OrderedMap;
use crate::reject::Rejected;
use crate::reject_budget::{DEFAULT_MAX_REJECTED_FRACTION, RejectBudget};
use crate::source::{Encoding, RowSource};
use crate::windows::BucketWindows;
use crate::worker::{ImageReading, PendingBatch, RowMaker, RowTask};

/// Default of [`LoaderConfig::bucket_window`].
pub const DEFAULT_BUCKET_WINDOW: usize = 2048;

/// Settings of a [`Loader`]. Change fields of [`LoaderConfig::default`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoaderConfig {
    /// Number of rows in a batch of this process.
    pub batch_size: usize,
    /// Rank of this process, from 0.
    pub rank: usize,
    /// Number of processes that train together. At each step they share a global batch of
    /// `world_size` · `batch_size` rows, which depends on that product alone.
    pub world_size: usize,
    /// Length in tokens at which a row is cut.
    pub max_seq_len: usize,
    /// Number of tokens of an image in the prompt: the number of features that the model puts
    /// there.
    pub tokens_per_image: usize,
    /// How rows of different lengths share a batch.
    pub padding: Padding,
    /// Whether the order is drawn from the seed and the epoch; otherwise it is the order of the
    /// source.
    pub shuffle: bool,
    /// Random changes of the conversations.
    pub chat_draws: ChatDraws,
    /// Seed of the shuffle and of the changes of the conversations.
    pub seed: u64,
    /// Whether the last batch is left out if it is not full.
    pub drop_last: bool,
    /// Number of threads that decode and tokenize ahead; with 0 the caller's thread does it on
    /// request.
    pub num_workers: usize,
    /// Largest number of batches that are ready or being made.
    pub prefetch_batches: usize,
    /// Number of rows within which rows of similar length are put together; 0 for none. Needs
    /// `shuffle`.
    pub bucket_window: usize,
    /// Largest fraction of rejected rows, from 0 to 1; an epoch with more ends with an error.
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
            chat_draws: ChatDraws::default(),
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
            return settings(
                "`batch_size` and the number of tokens of an image must be at least 1".into(),
            );
        }
        if self.rank >= self.world_size {
            return settings(format!(
                "rank {} of {} is out of range; ranks count from 0",
                self.rank,
                count(self.world_size, "process")
            ));
        }
        if self.max_seq_len < 2 {
            return settings(format!(
                "`max_seq_len` is {}, but must be at least 2: a token to predict and one before it",
                self.max_seq_len
            ));
        }
        if !(0.0..=1.0).contains(&self.max_rejected_fraction) {
            return settings(format!(
                "`max_rejected_fraction` is {}, but must be from 0 to 1",
                self.max_rejected_fraction
            ));
        }
        if self.order().num_batches(num_rows) == 0 {
            return settings(format!(
                "{} cannot fill one batch of {}; lower `batch_size`, or turn off `drop_last`",
                count(num_rows, "row"),
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
    /// A loader for the rows of `source`. `images` is an image processor, a feature cache, or
    /// `None` to leave images unread.
    ///
    /// # Errors
    /// Settings that give no batch; a source of token ids that were made with another tokenizer or
    /// other settings.
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
            chat_draws: config.chat_draws.clone(),
            seed: config.seed,
        };
        Ok(Self { maker: Arc::new(maker), config })
    }

    /// The settings.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Number of rows of the source, including unusable ones.
    pub fn num_rows(&self) -> usize {
        self.maker.source.len()
    }

    /// Number of batches in an epoch, the same on every rank.
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

    /// The location of row `index` for messages: `captions.jsonl:17`.
    pub fn locate(&self, index: usize) -> String {
        self.maker.source.locate(index)
    }

    /// Row `index` as it goes into a batch, or why it is rejected. The images must be read as
    /// pixels ([`ImageReading::Pixels`]).
    ///
    /// # Errors
    /// A disk that fails; a loader that does not preprocess images.
    pub fn load_row(&self, index: usize) -> Result<Result<LoadedRow, Rejected>, DataError> {
        self.maker.load(index)
    }

    /// The rows of batch `index` of `epoch` on all ranks together.
    pub fn global_batch(&self, epoch: u64, index: usize) -> Vec<usize> {
        let order = EpochOrder::new(self.config.order(), self.num_rows(), epoch);
        BucketWindows::new(Arc::clone(&self.maker), order, false).global_batch(index)
    }

    /// This rank's batches of `epoch`, from batch `start_batch` on. A batch whose rows were all
    /// rejected, or that has no row for this rank, is returned empty, so that the numbers of the
    /// batches stay right. After an error there are no more batches. Dropping the iterator stops
    /// its threads.
    pub fn epoch(&self, epoch: u64, start_batch: usize) -> Epoch {
        let order = EpochOrder::new(self.config.order(), self.num_rows(), epoch);
        Epoch::new(Arc::clone(&self.maker), &self.config, order, start_batch)
    }
}

/// The batches of an epoch, in order; see [`Loader::epoch`].
pub struct Epoch {
    maker: Arc<RowMaker>,
    windows: BucketWindows,
    epoch: u64,
    num_batches: usize,
    rank: usize,
    world_size: usize,
    /// Next batch to return.
    next: usize,
    /// Next batch to pass to the workers.
    next_planned: usize,
    prefetch: usize,
    /// The worker threads; without them batches are made in the caller's thread.
    workers: Option<OrderedMap<RowTask, Option<Result<Batch, DataError>>>>,
    /// Number of rows of each batch from `next` to `next_planned`.
    planned_rows: VecDeque<usize>,
    budget: RejectBudget,
    /// Whether the iterator started at the first batch of the epoch.
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
        let (epoch, num_batches) = (order.epoch(), order.num_batches());
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
            windows: BucketWindows::new(Arc::clone(&maker), order, num_workers > 0),
            maker,
            epoch,
            num_batches,
            rank: config.rank,
            world_size: config.world_size,
        }
    }

    /// This rank's rows of batch `index`.
    fn rows(&mut self, index: usize) -> Vec<usize> {
        rows_of_rank(&self.windows.global_batch(index), self.rank, self.world_size).to_vec()
    }

    /// Passes the rows of the next batches to the workers, at most `prefetch` batches ahead,
    /// because the pixels of a batch may take megabytes.
    fn plan(&mut self) {
        let end = (self.next + self.prefetch).min(self.num_batches);
        for index in self.next_planned..end {
            let rows = self.rows(index);
            let Some(workers) = &mut self.workers else { return };
            self.planned_rows.push_back(rows.len());
            let batch = Arc::new(PendingBatch::new(self.epoch, index, rows.len()));
            for (slot, row) in rows.into_iter().enumerate() {
                workers.submit(RowTask { batch: Arc::clone(&batch), slot, row });
            }
        }
        self.next_planned = self.next_planned.max(end);
    }

    /// Makes batch `self.next`, or waits for it.
    fn take_next(&mut self) -> Result<Batch, DataError> {
        if self.workers.is_some() {
            self.plan();
        }
        let (Some(workers), Some(num_rows @ 1..)) =
            (&mut self.workers, self.planned_rows.pop_front())
        else {
            let rows = self.rows(self.next);
            return self.maker.make_batch(self.epoch, self.next, &rows);
        };
        // The results of all rows are taken; the thread that made the last row returned the batch.
        let results = (0..num_rows).filter_map(|_| workers.wait_next()?);
        results.last().unwrap_or_else(|| {
            Err(DataError::Internal("the loader's threads ended before their last row".into()))
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
            // An epoch that was started in its middle counts only the rows since then.
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

/// Starts the threads of the loader; `None` if none are asked for or none can be started.
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
        .inspect_err(|error| tracing::warn!("the loader runs without worker threads: {error}"))
        .ok()
}
