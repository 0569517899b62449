//! The report about a prepared data set.

use std::collections::BTreeMap;
use std::fmt;

use super::manifest::Manifest;
use crate::reject_budget::count_by_reason;

/// Smallest value, median, 95th percentile and largest value of a histogram.
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
struct ManifestReport<'a> {
    manifest: &'a Manifest,
    batch_size: usize,
}

impl Manifest {
    /// A report on the data set in a few lines of text, with the padding of batches of `batch_size`
    /// rows.
    pub fn report(&self, batch_size: usize) -> String {
        ManifestReport { manifest: self, batch_size }.to_string()
    }
}

impl fmt::Display for ManifestReport<'_> {
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
        let total: usize = rejected.values().sum();
        let by_reason = match count_by_reason(rejected) {
            counts if counts.is_empty() => counts,
            counts => format!(" ({counts})"),
        };
        writeln!(f, "rejected    {total} rows{by_reason}")?;
        let waste = statistics.padding_waste(self.batch_size, made_with.max_seq_len);
        write!(
            f,
            "padding     at batch size {}: {:.1}% in shuffled order, {:.1}% with rows of similar \
             length together, {:.1}% with rows padded to {}",
            self.batch_size,
            100.0 * waste.drawn,
            100.0 * waste.bucketed,
            100.0 * waste.to_limit,
            made_with.max_seq_len
        )
    }
}
