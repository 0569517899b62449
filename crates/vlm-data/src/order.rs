//! In what order an epoch takes the rows, and which of them form a batch.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// How an epoch's batches are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OrderConfig {
    pub(crate) batch_size: usize,
    pub(crate) shuffle: bool,
    pub(crate) seed: u64,
    pub(crate) drop_last: bool,
    /// Rows within which similar lengths are put together; 0: none. Without shuffling there is
    /// none either.
    pub(crate) bucket_window: usize,
}

impl OrderConfig {
    /// Number of batches an epoch has, whatever its order.
    pub(crate) fn num_batches(&self, num_rows: usize) -> usize {
        if self.drop_last { num_rows / self.batch_size } else { num_rows.div_ceil(self.batch_size) }
    }

    /// The rows of each batch of `epoch`: a function of the seed, the epoch and the lengths alone.
    pub(crate) fn batches(
        &self,
        num_rows: usize,
        epoch: u64,
        length_hint: impl Fn(usize) -> u64,
    ) -> Vec<Vec<usize>> {
        let mut rows: Vec<usize> = (0..num_rows).collect();
        let mut rng = epoch_rng(self.seed, epoch);
        if self.shuffle {
            rows.shuffle(&mut rng);
        }
        let mut batches: Vec<Vec<usize>> = if self.shuffle && self.bucket_window > self.batch_size {
            // Whole batches fit into a window, so that only the last of all can be short.
            let window = self.bucket_window / self.batch_size * self.batch_size;
            rows.chunks_mut(window)
                .flat_map(|window| {
                    window.sort_by_key(|&row| length_hint(row));
                    let mut batches: Vec<_> =
                        window.chunks(self.batch_size).map(<[usize]>::to_vec).collect();
                    // The model shall not see short rows first in every window. A batch that is
                    // not full stays the last one.
                    let num_full = window.len() / self.batch_size;
                    batches[..num_full].shuffle(&mut rng);
                    batches
                })
                .collect()
        } else {
            rows.chunks(self.batch_size).map(<[usize]>::to_vec).collect()
        };
        batches.truncate(self.num_batches(num_rows));
        batches
    }
}

/// A generator of its own for each (seed, epoch).
fn epoch_rng(seed: u64, epoch: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: OrderConfig =
        OrderConfig { batch_size: 4, shuffle: true, seed: 7, drop_last: false, bucket_window: 0 };

    fn batches(config: OrderConfig, epoch: u64) -> Vec<Vec<usize>> {
        config.batches(50, epoch, |row| (row as u64 * 37) % 50)
    }

    fn sorted(batches: Vec<Vec<usize>>) -> Vec<usize> {
        let mut rows = batches.concat();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn every_row_is_taken_once_in_an_order_of_seed_and_epoch() {
        for bucket_window in [0, 10, 16, 1000] {
            let config = OrderConfig { bucket_window, ..CONFIG };
            let first = batches(config, 0);
            assert_eq!(first.len(), config.num_batches(50));
            assert_eq!(first, batches(config, 0));
            assert_ne!(first, batches(config, 1));
            assert_ne!(first, batches(OrderConfig { seed: 8, ..config }, 0));
            assert!(first[..12].iter().all(|batch| batch.len() == 4));
            assert_eq!(sorted(first), (0..50).collect::<Vec<_>>());
        }
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
        let length = |row: &usize| (*row * 37) % 50;
        let spread = |config| -> usize {
            let spread = |batch: &Vec<usize>| {
                batch.iter().map(length).max().unwrap() - batch.iter().map(length).min().unwrap()
            };
            batches(config, 0).iter().map(spread).sum()
        };
        assert!(spread(OrderConfig { bucket_window: 50, ..CONFIG }) * 4 < spread(CONFIG));
    }
}
