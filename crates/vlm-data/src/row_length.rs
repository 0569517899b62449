//! How long rows will be in tokens, without tokenizing them all: so that rows of like length can be
//! put together.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::chat::ChatTokenizer;
use crate::rows::{Row, Turn};
use crate::source::RowSource;

/// What decides a row's number of tokens: the same for a row whatever file it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowLength {
    /// Bytes of text of all turns. Bytes, not characters: a token covers about as many bytes in
    /// Chinese as in English.
    pub text_bytes: u32,
    /// Its images.
    pub num_images: u32,
}

impl RowLength {
    /// Of a row with these turns.
    pub(crate) fn of(turns: &[Turn], num_images: usize) -> Self {
        let text: usize = turns.iter().map(|turn| turn.content.len()).sum();
        let to_u32 = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self { text_bytes: to_u32(text), num_images: to_u32(num_images) }
    }
}

impl Row {
    /// What decides its number of tokens.
    pub fn length(&self) -> RowLength {
        RowLength::of(&self.turns, self.images.len())
    }
}

/// A token of text has so many parts; lengths are compared in parts, as whole numbers.
const PARTS_A_TOKEN: f64 = 1024.0;
/// For text of which nothing is known.
const USUAL_TOKENS_A_BYTE: f64 = 0.3;
/// Rows that are tokenized to learn how much text a token covers, spread evenly.
const NUM_SAMPLES: usize = 64;

/// From bytes and images to tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LengthScale {
    tokens_a_byte: f64,
    tokens_per_image: usize,
    max_seq_len: usize,
}

impl LengthScale {
    /// Looks at some rows of `source`: how much more tokens longer ones have. A source that holds
    /// token ids gives the same as the rows they were made of.
    pub(crate) fn measure(
        source: &dyn RowSource,
        tokenizer: &ChatTokenizer,
        tokens_per_image: usize,
        max_seq_len: usize,
    ) -> Self {
        let num_samples = NUM_SAMPLES.min(source.len());
        let rows = (0..num_samples).map(|k| k * source.len() / num_samples);
        let sample = |row: usize| -> Option<(f64, f64)> {
            let length = source.length(row);
            let num_tokens = match source.prepared_row(row).ok()? {
                Some(prepared) => prepared.encoded.input_ids.len(),
                None => {
                    let row = source.row(row).ok()?;
                    let whole = tokenizer.encode_row(&row, tokens_per_image, max_seq_len);
                    whole.ok()?.input_ids.len()
                }
            };
            // Of a row that was cut the limit is known, and not its length.
            let is_whole = num_tokens < max_seq_len;
            let text = num_tokens as f64 - f64::from(length.num_images) * tokens_per_image as f64;
            is_whole.then_some((f64::from(length.text_bytes), text))
        };
        // A row that panics is met again, and named, when it is made.
        let guarded = |row| catch_unwind(AssertUnwindSafe(|| sample(row))).ok().flatten();
        let samples: Vec<(f64, f64)> = rows.filter_map(guarded).collect();
        let tokens_a_byte = slope(&samples).unwrap_or(USUAL_TOKENS_A_BYTE);
        Self { tokens_a_byte, tokens_per_image, max_seq_len }
    }

    /// To be compared with that of other rows.
    pub(crate) fn key(&self, length: RowLength) -> u64 {
        let text = f64::from(length.text_bytes) * self.tokens_a_byte;
        let images = f64::from(length.num_images) * self.tokens_per_image as f64;
        ((text + images).min(self.max_seq_len as f64) * PARTS_A_TOKEN) as u64
    }
}

/// How much `y` grows with `x`, by least squares; `None` where it does not.
fn slope(samples: &[(f64, f64)]) -> Option<f64> {
    let count = samples.len() as f64;
    let mean_x = samples.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = samples.iter().map(|(_, y)| y).sum::<f64>() / count;
    let covariance: f64 = samples.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = samples.iter().map(|(x, _)| (x - mean_x) * (x - mean_x)).sum();
    let slope = covariance / variance;
    (slope.is_finite() && slope > 0.0).then_some(slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_images_weigh_what_they_have_in_tokens() {
        let samples = [(10.0, 7.0), (20.0, 9.0), (40.0, 13.0)];
        assert_eq!(slope(&samples), Some(0.2));
        assert_eq!(slope(&[(5.0, 7.0), (5.0, 9.0)]), None);
        assert_eq!(slope(&[]), None);
        let scale = LengthScale { tokens_a_byte: 0.2, tokens_per_image: 49, max_seq_len: 100 };
        let key = |text_bytes, num_images| scale.key(RowLength { text_bytes, num_images });
        assert!(key(244, 0) < key(0, 1) && key(0, 1) < key(246, 0));
        assert_eq!(key(0, 3), key(10_000, 0), "all that is cut is of one length");
    }
}
