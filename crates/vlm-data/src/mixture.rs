//! Combines several sources into one: one after another, or mixed by weight.

use std::sync::Arc;

use bytes::Bytes;
use vlm_display::count;

use crate::error::DataError;
use crate::row_error::RowError;
use crate::rows::{Row, RowImage, Turn};
use crate::source::{Encoding, PreparedRow, RowSource};

/// Sources one after another.
pub struct Concatenation {
    parts: Vec<Arc<dyn RowSource>>,
    /// First row of each part, then the number of all rows.
    starts: Vec<usize>,
}

impl Concatenation {
    /// The rows of `parts` in their order.
    pub fn new(parts: Vec<Arc<dyn RowSource>>) -> Self {
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts.last().copied().unwrap_or(0) + part.len());
        }
        Self { parts, starts }
    }
}

/// Sources mixed by weight.
///
/// An epoch is the shortest one in which the sources have the ratio of their weights and every row
/// of every source occurs at least once: with N rows and a fraction w of the total weight, a source
/// gives `round(w · E)` rows to an epoch of `E = max(N / w)` rows. A source that gives more rows
/// than it has repeats them, each equally often give or take one. Which rows of the mixture come
/// from which source is fixed, and they are spread evenly over its length, so that the order
/// without shuffling is mixed too.
pub struct Mixture {
    parts: Vec<WeightedSource>,
    len: usize,
}

struct WeightedSource {
    source: Arc<dyn RowSource>,
    /// Number of rows that it gives to an epoch.
    num_drawn: usize,
}

/// Largest number of rows in an epoch; more are taken for a mistake in the weights.
const MAX_EPOCH_ROWS: f64 = 1e12;

impl Mixture {
    /// Sources with their weights, of which only the ratios matter.
    ///
    /// # Errors
    /// Weights that are not positive, or that give an epoch too many rows.
    pub fn new(sources: Vec<(Arc<dyn RowSource>, f64)>) -> Result<Self, DataError> {
        let total: f64 = sources.iter().map(|(_, weight)| weight).sum();
        if sources.iter().any(|(_, weight)| !(*weight > 0.0 && weight.is_finite())) {
            return Err(DataError::Settings(
                "the weights of `data_path` must be positive numbers".into(),
            ));
        }
        let epoch_rows = sources
            .iter()
            .map(|(source, weight)| source.len() as f64 * total / weight)
            .fold(0.0, f64::max);
        if epoch_rows > MAX_EPOCH_ROWS {
            return Err(DataError::Settings(format!(
                "with these weights an epoch with every row has {epoch_rows:.1e} rows; raise the \
                 smallest weight"
            )));
        }
        let parts: Vec<WeightedSource> = sources
            .into_iter()
            .map(|(source, weight)| {
                let num_drawn = (weight / total * epoch_rows).round() as usize;
                // Rounding must not lose a row.
                WeightedSource { num_drawn: num_drawn.max(source.len()), source }
            })
            .filter(|part| part.num_drawn > 0)
            .collect();
        Ok(Self { len: parts.iter().map(|part| part.num_drawn).sum(), parts })
    }

    /// For each source, the number of its rows and the number that it gives to an epoch.
    pub fn counts(&self) -> impl Iterator<Item = (usize, usize)> {
        self.parts.iter().map(|part| (part.source.len(), part.num_drawn))
    }

    /// The number of draws of part `k` before draw `draw` of part `of`: those at a smaller position
    /// (draw + ½) / `num_drawn`, and at the same position those of earlier parts.
    fn draws_before(&self, k: usize, of: usize, draw: usize) -> usize {
        let (a, b) = (self.parts[k].num_drawn as u128, self.parts[of].num_drawn as u128);
        if k == of {
            return draw;
        }
        // j counts when (2j + 1) · b < (2 · draw + 1) · a, or when they are equal and k is earlier.
        let place = (2 * draw as u128 + 1) * a;
        let halves = if k < of { place / b } else { place.saturating_sub(1) / b };
        (halves.div_ceil(2)).min(a) as usize
    }

    /// The part and its draw at `index`, which must be below the length.
    fn draw_at(&self, index: usize) -> (usize, usize) {
        for (of, part) in self.parts.iter().enumerate() {
            let rank = |draw: usize| -> usize {
                (0..self.parts.len()).map(|k| self.draws_before(k, of, draw)).sum()
            };
            // Ranks increase with the draw: find the draw whose rank is `index`.
            let (mut low, mut high) = (0, part.num_drawn);
            while low < high {
                let middle = low + (high - low) / 2;
                if rank(middle) < index {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            if low < part.num_drawn && rank(low) == index {
                return (of, low);
            }
        }
        // Unreachable: every index is the rank of some draw, which the tests check.
        (0, 0)
    }
}

/// A source that consists of others.
pub(crate) trait CompositeSource: Send + Sync {
    /// Number of rows.
    fn num_rows(&self) -> usize;
    /// The source that has row `index`, and the index of the row in it.
    fn part_of(&self, index: usize) -> (&dyn RowSource, usize);
    /// All of the sources.
    fn sources(&self) -> Vec<&dyn RowSource>;
}

impl CompositeSource for Concatenation {
    fn num_rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn part_of(&self, index: usize) -> (&dyn RowSource, usize) {
        let part = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        let part = part.min(self.parts.len() - 1);
        (self.parts[part].as_ref(), index - self.starts[part])
    }

    fn sources(&self) -> Vec<&dyn RowSource> {
        self.parts.iter().map(AsRef::as_ref).collect()
    }
}

impl CompositeSource for Mixture {
    fn num_rows(&self) -> usize {
        self.len
    }

    fn part_of(&self, index: usize) -> (&dyn RowSource, usize) {
        let (part, draw) = self.draw_at(index);
        let WeightedSource { source, num_drawn } = &self.parts[part];
        let row = draw as u128 * source.len() as u128 / *num_drawn as u128;
        (source.as_ref(), row as usize)
    }

    fn sources(&self) -> Vec<&dyn RowSource> {
        self.parts.iter().map(|part| part.source.as_ref()).collect()
    }
}

impl<T: CompositeSource> RowSource for T {
    fn len(&self) -> usize {
        self.num_rows()
    }

    fn row(&self, index: usize) -> Result<Row, RowError> {
        let (source, row) = self.part_of(index);
        source.row(row)
    }

    fn prepared_row(&self, index: usize) -> Result<Option<PreparedRow>, RowError> {
        let (source, row) = self.part_of(index);
        source.prepared_row(row)
    }

    fn image_bytes(&self, index: usize, k: usize, image: &RowImage) -> Result<Bytes, RowError> {
        let (source, row) = self.part_of(index);
        source.image_bytes(row, k, image)
    }

    fn locate(&self, index: usize) -> String {
        let (source, row) = self.part_of(index);
        source.locate(row)
    }

    fn turns(&self, index: usize) -> Result<Vec<Turn>, RowError> {
        let (source, row) = self.part_of(index);
        source.turns(row)
    }

    fn describe(&self) -> Vec<String> {
        const MAX_FILES: usize = 4;
        let sources = self.sources();
        let mut described: Vec<String> =
            sources.iter().take(MAX_FILES).flat_map(|source| source.describe()).collect();
        if sources.len() > MAX_FILES {
            described.push(format!("and {}", count(sources.len() - MAX_FILES, "more file")));
        }
        described
    }

    fn num_tokens(&self, index: usize) -> Option<usize> {
        let (source, row) = self.part_of(index);
        source.num_tokens(row)
    }

    fn check_encoding(&self, wanted: &Encoding<'_>) -> Result<(), DataError> {
        self.sources().into_iter().try_for_each(|source| source.check_encoding(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reject::{Reject, RejectReason};

    /// Rows that are their name and number.
    struct Named(&'static str, usize);

    impl RowSource for Named {
        fn len(&self) -> usize {
            self.1
        }

        fn row(&self, _: usize) -> Result<Row, RowError> {
            Err(Reject::new(RejectReason::InvalidRow, self.0).into())
        }

        fn image_bytes(&self, _: usize, _: usize, _: &RowImage) -> Result<Bytes, RowError> {
            Ok(Bytes::new())
        }

        fn locate(&self, index: usize) -> String {
            assert!(index < self.1);
            format!("{}{index}", self.0)
        }
    }

    fn named(name: &'static str, rows: usize) -> Arc<dyn RowSource> {
        Arc::new(Named(name, rows))
    }

    fn places(source: &dyn RowSource) -> Vec<String> {
        (0..source.len()).map(|index| source.locate(index)).collect()
    }

    #[test]
    fn parts_follow_one_another() {
        let parts = vec![named("a", 2), named("none", 0), named("b", 1)];
        assert_eq!(places(&Concatenation::new(parts)), ["a0", "a1", "b0"]);
    }

    #[test]
    fn an_epoch_shows_every_row_in_the_ratio_of_the_weights() {
        for (sizes, weights) in [
            ([3, 7, 5], [0.7, 0.2, 0.1]),
            ([100, 1, 10], [1.0, 1.0, 1.0]),
            ([5, 5, 5], [2.0, 2.0, 2.0]),
            ([1, 1, 997], [0.001, 5.0, 3.0]),
        ] {
            let names = ["a", "b", "c"];
            let sources =
                (0..3).map(|k| (named(names[k], sizes[k]), weights[k])).collect::<Vec<_>>();
            let mixture = Mixture::new(sources).unwrap();
            let places = places(&mixture);
            let total: f64 = weights.iter().sum();
            for (k, (size, drawn)) in mixture.counts().enumerate() {
                let of_part: Vec<_> = places.iter().filter(|p| p.starts_with(names[k])).collect();
                assert_eq!(of_part.len(), drawn, "every draw is at one place");
                let share = drawn as f64 / places.len() as f64;
                let expected = weights[k] / total;
                assert!((share - expected).abs() < 2.0 / places.len() as f64, "{share} {expected}");
                let times = |row: usize| {
                    of_part.iter().filter(|p| ***p == format!("{}{row}", names[k])).count()
                };
                let counts: Vec<_> = (0..size).map(times).collect();
                let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(*min >= 1 && max - min <= 1, "{counts:?}");
            }
        }
    }

    #[test]
    fn a_mixture_is_mixed_throughout() {
        let sources = vec![(named("a", 60), 3.0), (named("b", 20), 1.0)];
        let places = places(&Mixture::new(sources).unwrap());
        assert_eq!(places.len(), 80);
        for window in places.chunks(8) {
            assert_eq!(window.iter().filter(|p| p.starts_with('b')).count(), 2, "{window:?}");
        }
    }

    #[test]
    fn weights_that_make_no_sense_are_refused() {
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-15] {
            assert!(Mixture::new(vec![(named("a", 5), 1.0), (named("b", 5), weight)]).is_err());
        }
    }
}
