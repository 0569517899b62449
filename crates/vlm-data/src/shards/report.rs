//! The report about a prepared data set.

use std::collections::BTreeMap;

use vlm_display::{Align, Table, count};

use super::manifest::Manifest;
use crate::reject_budget::count_by_reason;

/// Smallest value, median, 95th percentile and largest value of a histogram.
fn spread(histogram: &BTreeMap<u32, u64>) -> Option<[u32; 4]> {
    let total: f64 = histogram.values().map(|&count| count as f64).sum();
    let at = |share: f64| {
        let rank = (total * share).ceil().max(1.0);
        let mut seen = 0.0;
        let reached = histogram.iter().find(|(_, count)| {
            seen += **count as f64;
            seen >= rank
        });
        reached.map(|(&value, _)| value)
    };
    Some([*histogram.keys().next()?, at(0.5)?, at(0.95)?, *histogram.keys().next_back()?])
}

impl Manifest {
    /// A report on the data set, with the padding of batches of `batch_size`
    /// rows.
    pub fn report(&self, batch_size: usize) -> Table {
        let Self { made_with, statistics, num_rows, num_source_rows, rejected, shards, .. } = self;
        let limit = made_with.max_seq_len;
        let mut table = Table::new(&[Align::Left]);
        let mut add = |name: &str, value: String| table.push(&[&name, &value]);
        let megabytes = shards.iter().map(|shard| shard.num_bytes as f64).sum::<f64>() / 1e6;
        let num_shards = count(shards.len(), "shard");
        add("rows", format!("{num_rows} of {num_source_rows}, in {num_shards}, {megabytes:.1} MB"));
        if let Some([min, median, p95, max]) = spread(&statistics.rows_by_tokens) {
            let tokens = statistics.num_tokens;
            add(
                "tokens",
                format!(
                    "{tokens}; a row: {min} min, {median} median, {p95} at 95%, {max} max; {} cut \
                     at {limit}",
                    count(statistics.num_cut, "row")
                ),
            );
            let supervised = statistics.num_supervised;
            let percent = 100.0 * supervised as f64 / tokens as f64;
            add("supervised", format!("{} ({percent:.1}%)", count(supervised, "token")));
        }
        let short = spread(&statistics.images_by_short_side);
        let long = spread(&statistics.images_by_long_side);
        let images = match short.zip(long) {
            Some(([min_short, short, _, max_short], [min_long, long, _, max_long])) => format!(
                "{}; shorter side {min_short} min, {short} median, {max_short} max; longer side \
                 {min_long} min, {long} median, {max_long} max; {} each",
                statistics.num_images,
                count(made_with.tokens_per_image, "token")
            ),
            None => "none".to_owned(),
        };
        add("images", images);
        let by_reason = match count_by_reason(rejected) {
            counts if counts.is_empty() => counts,
            counts => format!(" ({counts})"),
        };
        let num_rejected: usize = rejected.values().sum();
        add("rejected", format!("{}{by_reason}", count(num_rejected, "row")));
        let waste = statistics.padding_waste(batch_size, limit);
        add(
            "padding",
            format!(
                "at batch size {batch_size}: {:.1}% in shuffled order, {:.1}% with rows of similar \
                 length together, {:.1}% with rows padded to {limit}",
                100.0 * waste.drawn,
                100.0 * waste.bucketed,
                100.0 * waste.to_limit,
            ),
        );
        table
    }
}
