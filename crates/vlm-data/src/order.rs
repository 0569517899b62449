//! Decides in which order an epoch takes the rows, and which of them form a batch.
//!
//! Every batch is computed from its number alone, so that a run can start anywhere. The rows that
//! all ranks together take at one step are a global batch, which does not depend on the number of
//! ranks.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::permutation::Permutation;

/// How the batches of an epoch are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OrderConfig {
    /// Number of rows in a global batch, of all ranks together.
    pub(crate) global_batch_size: usize,
    pub(crate) shuffle: bool,
    pub(crate) seed: u64,
    pub(crate) drop_last: bool,
    /// Number of rows within which rows of similar length are put together; 0 for none. It has no
    /// effect without `shuffle`.
    pub(crate) bucket_window: usize,
}

impl OrderConfig {
    /// Number of global batches in an epoch; the same for every order.
    pub(crate) fn num_batches(&self, num_rows: usize) -> usize {
        if self.drop_last {
            num_rows / self.global_batch_size
        } else {
            num_rows.div_ceil(self.global_batch_size)
        }
    }

    /// Number of rows in a window: whole batches, so that only the last batch of the epoch can be
    /// short.
    fn window_len(&self) -> Option<usize> {
        let num_batches = self.bucket_window / self.global_batch_size;
        (self.shuffle && num_batches > 1).then_some(num_batches * self.global_batch_size)
    }
}

/// The batches of one epoch: a function of the seed, the epoch, the lengths and the size of a
/// global batch.
#[derive(Debug)]
pub(crate) struct EpochOrder {
    config: OrderConfig,
    num_rows: usize,
    epoch: u64,
    permutation: Option<Permutation>,
}

/// Rows that were ordered together.
#[derive(Debug)]
pub(crate) struct BucketWindow {
    pub(crate) index: usize,
    /// The rows of one batch after another.
    rows: Vec<usize>,
}

/// Index of a row with its number of tokens.
pub(crate) type RowLength = (usize, usize);

impl EpochOrder {
    pub(crate) fn new(config: OrderConfig, num_rows: usize, epoch: u64) -> Self {
        let permutation =
            config.shuffle.then(|| Permutation::new(num_rows, key(config.seed, epoch, 0)));
        Self { config, num_rows, epoch, permutation }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn num_batches(&self) -> usize {
        self.config.num_batches(self.num_rows)
    }

    /// The window that contains global batch `index`; `None` if rows are not put together by
    /// length.
    pub(crate) fn window_of(&self, index: usize) -> Option<usize> {
        let window_len = self.config.window_len()?;
        Some(index * self.config.global_batch_size / window_len)
    }

    /// Number of windows.
    pub(crate) fn num_windows(&self) -> usize {
        self.config.window_len().map_or(0, |window_len| self.num_rows.div_ceil(window_len))
    }

    /// Makes window `index`. `measure` takes its rows and returns them with their lengths, in any
    /// order that depends on the rows alone.
    pub(crate) fn window(
        &self,
        index: usize,
        measure: impl FnOnce(Vec<usize>) -> Vec<RowLength>,
    ) -> BucketWindow {
        let window_len = self.config.window_len().unwrap_or(self.num_rows);
        let size = self.config.global_batch_size;
        let start = index * window_len;
        let rows = self.permuted(start..(start + window_len).min(self.num_rows));
        let mut rng = ChaCha8Rng::from_seed(key(self.config.seed, self.epoch, 1 + index as u64));
        let mut measured = measure(rows);
        // Rows of the same length are in random order.
        measured.shuffle(&mut rng);
        measured.sort_by_key(|&(_, length)| length);
        // The batches are shuffled so that the model does not see short rows first in every window.
        // A batch that is not full stays the last one.
        let num_full = measured.len() / size;
        let mut batches: Vec<&[RowLength]> = measured.chunks(size).collect();
        batches[..num_full].shuffle(&mut rng);
        let rows = batches.concat().into_iter().map(|(row, _)| row).collect();
        BucketWindow { index, rows }
    }

    /// The rows of global batch `index`; `window` is the window that contains it, if there are
    /// windows.
    pub(crate) fn global_batch(&self, index: usize, window: Option<&BucketWindow>) -> Vec<usize> {
        let size = self.config.global_batch_size;
        let start = index * size;
        let end = (start + size).min(self.num_rows);
        let (Some(window), Some(window_len)) = (window, self.config.window_len()) else {
            return self.permuted(start..end);
        };
        let first = window.index * window_len;
        window.rows[start - first..end - first].to_vec()
    }

    fn permuted(&self, positions: std::ops::Range<usize>) -> Vec<usize> {
        match &self.permutation {
            None => positions.collect(),
            Some(permutation) => positions.map(|position| permutation.at(position)).collect(),
        }
    }
}

/// The rows of a global batch that `rank` takes. The numbers of rows differ by at most one between
/// ranks, so that they finish together; if there are fewer rows than ranks, some ranks get none.
pub(crate) fn rows_of_rank(rows: &[usize], rank: usize, world_size: usize) -> &[usize] {
    let bound = |rank: usize| rows.len() * rank / world_size;
    &rows[bound(rank)..bound(rank + 1)]
}

/// A key for each combination of seed, epoch and purpose.
fn key(seed: u64, epoch: u64, purpose: u64) -> [u8; 32] {
    let mut key = [0; 32];
    for (part, value) in key.chunks_exact_mut(8).zip([seed, epoch, purpose]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: OrderConfig = OrderConfig {
        global_batch_size: 4,
        shuffle: true,
        seed: 7,
        drop_last: false,
        bucket_window: 0,
    };

    fn length(row: usize) -> usize {
        (row * 37) % 50
    }

    fn global_batch(order: &EpochOrder, index: usize) -> Vec<usize> {
        let measure = |rows: Vec<usize>| rows.into_iter().map(|row| (row, length(row))).collect();
        let window = order.window_of(index).map(|window| order.window(window, measure));
        order.global_batch(index, window.as_ref())
    }

    fn batches(config: OrderConfig, epoch: u64) -> Vec<Vec<usize>> {
        let order = EpochOrder::new(config, 50, epoch);
        (0..order.num_batches()).map(|index| global_batch(&order, index)).collect()
    }

    fn sorted(batches: Vec<Vec<usize>>) -> Vec<usize> {
        let mut rows = batches.concat();
        rows.sort_unstable();
        rows
    }

    prop_compose! {
        fn configs()(
            global_batch_size in 1..9_usize,
            seed: u64,
            shuffle: bool,
            drop_last: bool,
            bucket_window in prop_oneof![Just(0), 1..40_usize, Just(1000)],
        ) -> OrderConfig {
            OrderConfig { global_batch_size, shuffle, seed, drop_last, bucket_window }
        }
    }

    proptest! {
        #[test]
        fn every_row_is_taken_once_in_batches_that_are_full_but_for_the_last(
            config in configs(),
            num_rows in 0..200_usize,
            epoch in 0..5_u64,
        ) {
            let order = EpochOrder::new(config, num_rows, epoch);
            let all: Vec<_> = (0..order.num_batches()).map(|k| global_batch(&order, k)).collect();
            let size = config.global_batch_size;
            let num_full = num_rows / size;
            prop_assert!(all[..num_full].iter().all(|batch| batch.len() == size));
            let mut rows = sorted(all.clone());
            if !config.drop_last {
                prop_assert_eq!(&rows, &(0..num_rows).collect::<Vec<_>>());
            }
            rows.dedup();
            prop_assert_eq!(rows.len(), all.iter().map(Vec::len).sum::<usize>());
            // A batch is the same wherever a run begins.
            for (index, batch) in all.iter().enumerate().rev() {
                let fresh = EpochOrder::new(config, num_rows, epoch);
                prop_assert_eq!(&global_batch(&fresh, index), batch);
            }
        }

        #[test]
        fn the_shares_of_all_ranks_are_the_global_batch(
            rows in prop::collection::vec(any::<usize>(), 0..60),
            world_size in 1..17_usize,
        ) {
            let shares: Vec<_> =
                (0..world_size).map(|rank| rows_of_rank(&rows, rank, world_size)).collect();
            let smallest = rows.len() / world_size;
            prop_assert!(shares.iter().all(|share| (smallest..=smallest + 1).contains(&share.len())));
            prop_assert_eq!(shares.concat(), rows);
        }
    }

    #[test]
    fn the_order_depends_on_seed_and_epoch() {
        let first = batches(CONFIG, 0);
        assert_eq!(first, batches(CONFIG, 0));
        assert_ne!(first, batches(CONFIG, 1));
        assert_ne!(first, batches(OrderConfig { seed: 8, ..CONFIG }, 0));
    }

    #[test]
    fn the_shares_of_ranks_differ_by_one_row_at_most() {
        let rows: Vec<usize> = (10..18).collect();
        let sizes = |num_rows, world_size| -> Vec<usize> {
            (0..world_size)
                .map(|rank| rows_of_rank(&rows[..num_rows], rank, world_size).len())
                .collect()
        };
        assert_eq!(sizes(5, 2), [2, 3]);
        assert_eq!(sizes(3, 4), [0, 1, 1, 1]);
        assert_eq!(sizes(0, 2), [0, 0]);
    }

    #[test]
    fn without_shuffling_rows_come_as_they_are() {
        let config = OrderConfig { shuffle: false, bucket_window: 16, ..CONFIG };
        assert_eq!(batches(config, 3).concat(), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn drop_last_leaves_out_only_what_does_not_fill_a_batch() {
        let config = OrderConfig { drop_last: true, bucket_window: 16, ..CONFIG };
        let kept = batches(config, 0);
        assert_eq!((kept.len(), config.num_batches(50)), (12, 12));
        assert!(kept.iter().all(|batch| batch.len() == 4));
    }

    #[test]
    fn a_bucket_holds_rows_of_like_length() {
        let spread = |config| -> usize {
            let spread = |batch: &Vec<usize>| {
                let lengths = || batch.iter().map(|&row| length(row));
                lengths().max().unwrap() - lengths().min().unwrap()
            };
            batches(config, 0).iter().map(spread).sum()
        };
        assert!(spread(OrderConfig { bucket_window: 50, ..CONFIG }) * 4 < spread(CONFIG));
    }

    #[test]
    fn a_billion_rows_cost_nothing_until_they_are_asked_for() {
        let config = OrderConfig { bucket_window: 64, ..CONFIG };
        let order = EpochOrder::new(config, 1_000_000_000, 0);
        let index = 123_456_789;
        let mut num_asked = 0;
        let window = order.window(order.window_of(index).unwrap(), |rows| {
            num_asked = rows.len();
            rows.into_iter().map(|row| (row, row)).collect()
        });
        let rows = order.global_batch(index, Some(&window));
        assert_eq!((rows.len(), num_asked), (4, 64));
    }
}
