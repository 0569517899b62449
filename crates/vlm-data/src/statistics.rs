//! Statistics of a prepared data set: lengths, supervised tokens, images, padding.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::encoded_row::EncodedRow;
use crate::loader::DEFAULT_BUCKET_WINDOW;

/// Counts over the rows of a data set. It has only sums and histograms, so that parts can be added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Number of tokens of all rows.
    pub num_tokens: u64,
    /// Number of tokens that are learned.
    pub num_supervised: u64,
    /// Number of images of all rows.
    pub num_images: u64,
    /// Number of rows that the length limit cut.
    pub num_cut: u64,
    /// Number of rows by their number of tokens.
    pub rows_by_tokens: BTreeMap<u32, u64>,
    /// Number of images by their shorter side in pixels.
    pub images_by_short_side: BTreeMap<u32, u64>,
    /// Number of images by their longer side in pixels.
    pub images_by_long_side: BTreeMap<u32, u64>,
}

/// The fraction of a batch's tokens that is padding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaddingWaste {
    /// Rows in shuffled order, padded to the longest of a batch.
    pub drawn: f64,
    /// The same with rows of similar length put together, which is the default of a loader.
    pub bucketed: f64,
    /// Every row padded to the length limit, as in the reference.
    pub to_limit: f64,
}

impl Statistics {
    /// Counts a row. `is_cut` tells whether the length limit cut it, and `image_sizes` are the
    /// widths and heights of its images.
    pub(crate) fn add(&mut self, encoded: &EncodedRow, is_cut: bool, image_sizes: &[(u32, u32)]) {
        let num_tokens = encoded.input_ids.len();
        self.num_tokens += num_tokens as u64;
        // No position predicts the first token.
        let learned = encoded.supervised.iter().map(|span| span.end - span.start.max(1));
        self.num_supervised += learned.sum::<usize>() as u64;
        self.num_cut += u64::from(is_cut);
        *self.rows_by_tokens.entry(num_tokens as u32).or_default() += 1;
        for &(width, height) in image_sizes {
            self.num_images += 1;
            *self.images_by_short_side.entry(width.min(height)).or_default() += 1;
            *self.images_by_long_side.entry(width.max(height)).or_default() += 1;
        }
    }

    /// Adds the counts of other rows.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.num_tokens += other.num_tokens;
        self.num_supervised += other.num_supervised;
        self.num_images += other.num_images;
        self.num_cut += other.num_cut;
        for (mine, theirs) in [
            (&mut self.rows_by_tokens, &other.rows_by_tokens),
            (&mut self.images_by_short_side, &other.images_by_short_side),
            (&mut self.images_by_long_side, &other.images_by_long_side),
        ] {
            for (&key, &count) in theirs {
                *mine.entry(key).or_default() += count;
            }
        }
    }

    /// Padding of batches of `batch_size` rows, by the lengths of at most a hundred thousand rows.
    pub fn padding_waste(&self, batch_size: usize, max_seq_len: usize) -> PaddingWaste {
        const MAX_SAMPLES: u128 = 100_000;
        // The counts come from a file: 128 bits have room for the sum of any of them.
        let num_rows: u128 = self.rows_by_tokens.values().map(|&count| u128::from(count)).sum();
        let step = num_rows.div_ceil(MAX_SAMPLES).max(1);
        let mut lengths: Vec<u32> = Vec::new();
        let mut seen = 0;
        for (&length, &count) in &self.rows_by_tokens {
            // Every `step`-th of all rows, in the order of their lengths.
            let count = u128::from(count);
            let taken = (seen + count).div_ceil(step) - u128::div_ceil(seen, step);
            lengths.extend(std::iter::repeat_n(length, taken as usize));
            seen += count;
        }
        lengths.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        let batch_size = batch_size.max(1);
        let drawn = waste(lengths.chunks(batch_size));
        let batches_a_window = (DEFAULT_BUCKET_WINDOW / batch_size).max(1);
        for window in lengths.chunks_mut(batch_size * batches_a_window) {
            window.sort_unstable();
        }
        let used: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
        let limit = lengths.len() as f64 * max_seq_len as f64;
        PaddingWaste {
            drawn,
            bucketed: waste(lengths.chunks(batch_size)),
            to_limit: if limit > 0.0 { 1.0 - used as f64 / limit } else { 0.0 },
        }
    }
}

fn waste<'a>(batches: impl Iterator<Item = &'a [u32]>) -> f64 {
    let (mut used, mut filled) = (0_u64, 0_u64);
    for batch in batches {
        used += batch.iter().map(|&length| u64::from(length)).sum::<u64>();
        let longest = batch.iter().max().copied().unwrap_or(0);
        filled += u64::from(longest) * batch.len() as u64;
    }
    if filled == 0 { 0.0 } else { 1.0 - used as f64 / filled as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_damaged_manifest_size_nothing() {
        let rows_by_tokens = [(10, 3), (20, u64::MAX), (30, u64::MAX)].into();
        let waste = Statistics { rows_by_tokens, ..Statistics::default() }.padding_waste(4, 40);
        assert!((waste.to_limit - 0.375).abs() < 1e-3, "{waste:?}");
    }
}
