//! The report of a prepared data set, for a person.

use std::collections::BTreeMap;
use std::fmt;

use super::manifest::Manifest;

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
