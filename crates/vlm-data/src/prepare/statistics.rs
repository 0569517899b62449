//! What is told of a prepared data set: lengths, what is learned from, pictures, padding.

use std::collections::BTreeMap;
use std::fmt;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::check::KeptRow;
use crate::loader::DEFAULT_BUCKET_WINDOW;
use crate::shards::Manifest;

/// Counts over the rows of a data set. Sums and histograms only, so that parts can be joined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Tokens of all rows.
    pub num_tokens: u64,
    /// Those that are learned from.
    pub num_supervised: u64,
    /// Pictures of all rows.
    pub num_images: u64,
    /// Rows that lost tokens to the length limit.
    pub num_cut: u64,
    /// Rows by their number of tokens.
    pub rows_by_tokens: BTreeMap<u32, u64>,
    /// Pictures by their shorter side, in pixels.
    pub images_by_short_side: BTreeMap<u32, u64>,
    /// Pictures by their longer side, in pixels.
    pub images_by_long_side: BTreeMap<u32, u64>,
}

/// The share of a batch's tokens that is padding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaddingWaste {
    /// Rows in a drawn order, filled up to the longest of a batch.
    pub drawn: f64,
    /// The same with rows of like length put together, as a loader does unless told otherwise.
    pub bucketed: f64,
    /// Every row filled up to the length limit, as the reference does.
    pub to_limit: f64,
}

impl Statistics {
    pub(super) fn add(&mut self, kept: &KeptRow) {
        let encoded = &kept.row.encoded;
        let num_tokens = encoded.input_ids.len();
        self.num_tokens += num_tokens as u64;
        // The first token of all is predicted by none.
        let learned = encoded.supervised.iter().map(|span| span.end - span.start.max(1));
        self.num_supervised += learned.sum::<usize>() as u64;
        self.num_cut += u64::from(kept.is_cut);
        *self.rows_by_tokens.entry(num_tokens as u32).or_default() += 1;
        for &(width, height) in &kept.image_sizes {
            self.num_images += 1;
            *self.images_by_short_side.entry(width.min(height)).or_default() += 1;
            *self.images_by_long_side.entry(width.max(height)).or_default() += 1;
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
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

    /// Padding at batches of `batch_size` rows, by the lengths of at most a hundred thousand rows.
    pub fn padding_waste(&self, batch_size: usize, max_seq_len: usize) -> PaddingWaste {
        const MAX_SAMPLES: u64 = 100_000;
        let num_rows: u64 = self.rows_by_tokens.values().sum();
        let step = num_rows.div_ceil(MAX_SAMPLES).max(1);
        let mut lengths: Vec<u32> = Vec::new();
        let mut seen = 0;
        for (&length, &count) in &self.rows_by_tokens {
            // Every `step`-th row of all, in the order of their lengths.
            let taken = (seen + count).div_ceil(step) - u64::div_ceil(seen, step);
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
        let limit = (lengths.len() * max_seq_len) as f64;
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

/// Smallest, median, 95th percentile and largest of a histogram.
fn spread(histogram: &BTreeMap<u32, u64>) -> Option<[u32; 4]> {
    let total: u64 = histogram.values().sum();
    let at = |share: f64| {
        let rank = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = histogram.iter().find(|(_, count)| {
            seen += **count;
            seen >= rank
        });
        reached.map(|(&value, _)| value)
    };
    Some([*histogram.keys().next()?, at(0.5)?, at(0.95)?, *histogram.keys().next_back()?])
}

/// The report of a data set; see [`Manifest::report`].
struct Report<'a> {
    manifest: &'a Manifest,
    batch_size: usize,
}

impl Manifest {
    /// What there is to say of the data set, with the padding at batches of `batch_size` rows: a
    /// few lines for a person.
    pub fn report(&self, batch_size: usize) -> String {
        Report { manifest: self, batch_size }.to_string()
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest { made_with, statistics, num_rows, num_source_rows, rejected, shards, .. } =
            self.manifest;
        let num_bytes: u64 = shards.iter().map(|shard| shard.num_bytes).sum();
        writeln!(
            f,
            "rows        {num_rows} of {num_source_rows}, in {} shards, {:.1} MB",
            shards.len(),
            num_bytes as f64 / 1e6
        )?;
        if let Some([min, median, p95, max]) = spread(&statistics.rows_by_tokens) {
            writeln!(
                f,
                "tokens      {}; a row: {min} min, {median} median, {p95} at 95%, {max} max; {} \
                 rows cut at {}",
                statistics.num_tokens, statistics.num_cut, made_with.max_seq_len
            )?;
            let share = statistics.num_supervised as f64 / statistics.num_tokens as f64;
            writeln!(
                f,
                "supervised  {} tokens ({:.1}%)",
                statistics.num_supervised,
                100.0 * share
            )?;
        }
        let short = spread(&statistics.images_by_short_side);
        let long = spread(&statistics.images_by_long_side);
        match short.zip(long) {
            Some((short, long)) => writeln!(
                f,
                "images      {}; shorter side {} min, {} median, {} max; longer side {} min, {} \
                 median, {} max; {} tokens each",
                statistics.num_images,
                short[0],
                short[1],
                short[3],
                long[0],
                long[1],
                long[3],
                made_with.tokens_per_image
            )?,
            None => writeln!(f, "images      none")?,
        }
        let mut reasons: Vec<_> = rejected.iter().collect();
        reasons.sort_by_key(|&(reason, &count)| (std::cmp::Reverse(count), *reason));
        let counts: Vec<_> =
            reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let total: usize = rejected.values().sum();
        let by_reason =
            if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) };
        writeln!(f, "rejected    {total} rows{by_reason}")?;
        let waste = statistics.padding_waste(self.batch_size, made_with.max_seq_len);
        write!(
            f,
            "padding     at batch size {}: {:.1}% in a drawn order, {:.1}% with rows of like length \
             together, {:.1}% filled up to {}",
            self.batch_size,
            100.0 * waste.drawn,
            100.0 * waste.bucketed,
            100.0 * waste.to_limit,
            made_with.max_seq_len
        )
    }
}
