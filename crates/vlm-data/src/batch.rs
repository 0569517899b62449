//! Batches: the samples of several rows, as the model takes them.

use serde::{Deserialize, Serialize};

use crate::encoded_row::EncodedRow;
use crate::feature_bytes::FeatureBytes;
use crate::reject::Rejected;

/// The label of positions without a loss: padding, questions, images.
pub const IGNORE_INDEX: i64 = -100;

/// How rows of different lengths share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Rows are padded to the longest row of the batch.
    #[default]
    Longest,
    /// Rows are padded to the length limit, as in the reference.
    Max,
    /// Rows are not padded but packed end to end, so that no time is spent on padding tokens.
    None,
}

/// The position of an image's features in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePosition {
    /// Index of the row in the batch.
    pub row: usize,
    /// Index of the image's first token in `input_ids` of that row.
    pub start: usize,
}

/// The data of a batch's N images, in the order of [`Batch::images`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ImageData {
    /// The batch has no images, or the loader was told not to read them.
    #[default]
    None,
    /// `[N, S, S, 3]`: images of side S as [`crate::ImageProcessor::crop_u8`] makes them, not
    /// normalized yet.
    Pixels(Vec<u8>),
    /// `[N, P, V]`: precomputed features of the vision encoder.
    Features(Features),
}

/// Features of N images, each of P patches by V values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Row by row, little-endian.
    pub bytes: FeatureBytes,
    /// Data type of the values.
    pub dtype: FeaturesDtype,
    /// P: patches of an image.
    pub num_patches: usize,
    /// V: values of a patch.
    pub hidden_size: usize,
}

/// Data type in which features are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeaturesDtype {
    /// 32 bits, as the encoder computes them.
    Float32,
    /// 16 bits, of which 8 bits of precision.
    Bfloat16,
    /// 16 bits, of which 11 bits of precision; values up to 65504.
    Float16,
}

impl FeaturesDtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 | Self::Float16 => 2,
        }
    }
}

/// A batch of B rows of T tokens with N images.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// Number of the batch in its epoch, from 0.
    pub index: usize,
    /// Indices of the rows in the source.
    pub rows: Vec<usize>,
    /// B; 0 when every row was rejected.
    pub batch_size: usize,
    /// T: length of the longest row, or the length limit less one.
    pub seq_len: usize,
    /// Whether the rows are packed end to end ([`Padding::None`]).
    pub is_packed: bool,
    /// `[B, T]`: the token ids of each row without the last one, then padding. If packed, `[sum of
    /// lengths]`.
    pub input_ids: Vec<i64>,
    /// Same shape as `input_ids`: the token to predict at each position, [`IGNORE_INDEX`] where
    /// there is none.
    pub labels: Vec<i64>,
    /// `[B]`: number of tokens in `input_ids` that are not padding.
    pub lengths: Vec<usize>,
    /// Pixels or features of the images.
    pub image_data: ImageData,
    /// `[N]`: the positions of their features.
    pub images: Vec<ImagePosition>,
    /// Number of labels that are not [`IGNORE_INDEX`].
    pub num_supervised: usize,
    /// The rows that were drawn for this batch and rejected.
    pub rejected: Vec<Rejected>,
}

/// What is made of a row that can be trained on.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Index of the row in the source.
    pub(crate) row: usize,
    pub(crate) encoded: EncodedRow,
    pub(crate) images: SampleImages,
}

/// The images of a sample.
#[derive(Debug, Clone)]
pub(crate) enum SampleImages {
    None,
    /// `[S, S, 3]` for each image.
    Pixels(Vec<Vec<u8>>),
    /// Indices of the images in the feature cache.
    Cached(Vec<usize>),
}

impl Batch {
    /// Makes a batch of `samples`. `max_len` is T for [`Padding::Max`]. Features are not read here:
    /// the batch comes without them.
    pub(crate) fn collate(
        index: usize,
        samples: Vec<Sample>,
        rejected: Vec<Rejected>,
        padding: Padding,
        max_len: usize,
        pad_token_id: i64,
    ) -> Self {
        let shifted_len = |sample: &Sample| sample.encoded.input_ids.len().saturating_sub(1);
        let longest = samples.iter().map(shifted_len).max().unwrap_or(0);
        let seq_len = match padding {
            Padding::Max if !samples.is_empty() => max_len.max(longest),
            _ => longest,
        };
        let is_packed = padding == Padding::None;
        let lengths: Vec<usize> = samples.iter().map(shifted_len).collect();
        let num_tokens = if is_packed { lengths.iter().sum() } else { samples.len() * seq_len };
        let crops = |sample: &Sample| match &sample.images {
            SampleImages::Pixels(crops) => crops.iter().map(Vec::len).sum(),
            _ => 0,
        };
        let mut pixels = Vec::with_capacity(samples.iter().map(crops).sum());
        let mut batch = Self {
            index,
            rows: samples.iter().map(|sample| sample.row).collect(),
            batch_size: samples.len(),
            seq_len,
            is_packed,
            input_ids: vec![pad_token_id; num_tokens],
            labels: vec![IGNORE_INDEX; num_tokens],
            lengths,
            image_data: ImageData::None,
            images: Vec::new(),
            num_supervised: 0,
            rejected,
        };
        let starts = batch.row_starts();
        for ((row, sample), at) in samples.into_iter().enumerate().zip(starts) {
            let ids = &sample.encoded.input_ids;
            let length = batch.lengths[row];
            batch.input_ids[at..at + length].copy_from_slice(&ids[..length]);
            for span in sample.encoded.labelled_spans() {
                // Position t predicts token t + 1.
                batch.labels[at + span.start - 1..at + span.end - 1]
                    .copy_from_slice(&ids[span.clone()]);
                batch.num_supervised += span.len();
            }
            let place = |&start: &usize| ImagePosition { row, start };
            batch.images.extend(sample.encoded.image_starts.iter().map(place));
            if let SampleImages::Pixels(crops) = &sample.images {
                crops.iter().for_each(|crop| pixels.extend_from_slice(crop));
            }
        }
        if !pixels.is_empty() {
            batch.image_data = ImageData::Pixels(pixels);
        }
        batch
    }

    /// `[B]`: index in `input_ids` at which each row begins.
    pub fn row_starts(&self) -> Vec<usize> {
        if !self.is_packed {
            return (0..self.batch_size).map(|row| row * self.seq_len).collect();
        }
        let start = |end: &mut usize, &length: &usize| {
            *end += length;
            Some(*end - length)
        };
        self.lengths.iter().scan(0, start).collect()
    }

    /// Pads the rows to `seq_len` tokens. Does nothing if they are that long already, if they are
    /// packed, or if there are no rows.
    pub fn pad_to(&mut self, seq_len: usize, pad_token_id: i64) {
        if self.batch_size == 0 || self.is_packed || seq_len <= self.seq_len {
            return;
        }
        let widen = |values: &[i64], fill: i64| {
            let mut wide = vec![fill; self.batch_size * seq_len];
            for (to, from) in wide.chunks_mut(seq_len).zip(values.chunks(self.seq_len)) {
                to[..from.len()].copy_from_slice(from);
            }
            wide
        };
        self.input_ids = widen(&self.input_ids, pad_token_id);
        self.labels = widen(&self.labels, IGNORE_INDEX);
        self.seq_len = seq_len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(row: usize, ids: &[i64], supervised: std::ops::Range<usize>) -> Sample {
        Sample {
            row,
            encoded: EncodedRow {
                input_ids: ids.to_vec(),
                supervised: vec![supervised],
                image_starts: vec![1],
            },
            images: SampleImages::Pixels(vec![vec![row as u8; 2]]),
        }
    }

    #[test]
    fn labels_are_the_ids_one_position_later() {
        let samples = vec![sample(4, &[1, 2, 3, 4], 2..4), sample(9, &[5, 6, 7], 0..2)];
        let batch = Batch::collate(3, samples.clone(), Vec::new(), Padding::Longest, 8, 0);
        let none = IGNORE_INDEX;
        assert_eq!((batch.index, batch.batch_size, batch.seq_len), (3, 2, 3));
        assert_eq!(batch.rows, [4, 9]);
        assert_eq!(batch.input_ids, [1, 2, 3, 5, 6, 0]);
        assert_eq!(batch.labels, [none, 3, 4, 6, none, none]);
        assert_eq!(batch.lengths, [3, 2]);
        assert_eq!(batch.num_supervised, 3);
        assert_eq!(batch.image_data, ImageData::Pixels(vec![4, 4, 9, 9]));
        let places = [ImagePosition { row: 0, start: 1 }, ImagePosition { row: 1, start: 1 }];
        assert_eq!(batch.images, places);

        let padded = Batch::collate(3, samples, Vec::new(), Padding::Max, 5, 9);
        assert_eq!(padded.seq_len, 5);
        assert_eq!(padded.input_ids, [1, 2, 3, 9, 9, 5, 6, 9, 9, 9]);
        assert_eq!(padded.num_supervised, 3);
    }

    #[test]
    fn a_batch_that_is_padded_later_is_the_batch_padded_at_once() {
        let samples = vec![sample(4, &[1, 2, 3, 4], 2..4), sample(9, &[5, 6, 7], 0..2)];
        let mut batch = Batch::collate(3, samples.clone(), Vec::new(), Padding::Longest, 8, 9);
        batch.pad_to(5, 9);
        assert_eq!(batch, Batch::collate(3, samples, Vec::new(), Padding::Max, 5, 9));
        batch.pad_to(2, 9);
        assert_eq!(batch.seq_len, 5);
    }

    #[test]
    fn a_packed_batch_is_not_padded_later() {
        let samples = vec![sample(4, &[1, 2, 3, 4], 2..4), sample(9, &[5, 6, 7], 0..2)];
        let mut packed = Batch::collate(3, samples, Vec::new(), Padding::None, 8, 0);
        assert_eq!(packed.input_ids, [1, 2, 3, 5, 6]);
        packed.pad_to(6, 0);
        assert_eq!((packed.input_ids.len(), packed.seq_len), (5, 3));
    }

    prop_compose! {
        /// A row of at least two tokens, of which a part is supervised.
        fn samples()(
            ids in prop::collection::vec(1..100_i64, 2..12),
            (from, to) in (0..12_usize, 0..12_usize),
        ) -> Sample {
            let (from, to) = (from.min(ids.len()), to.min(ids.len()));
            sample(7, &ids, from.min(to)..from.max(to))
        }
    }

    proptest! {
        #[test]
        fn a_packed_batch_has_the_same_rows_without_what_fills_them_up(
            samples in prop::collection::vec(samples(), 0..6),
        ) {
            let beside = Batch::collate(3, samples.clone(), Vec::new(), Padding::Longest, 8, 0);
            let packed = Batch::collate(3, samples, Vec::new(), Padding::None, 8, 0);
            prop_assert_eq!(packed.input_ids.len(), packed.lengths.iter().sum::<usize>());
            let (starts, beside_starts) = (packed.row_starts(), beside.row_starts());
            for (row, &length) in packed.lengths.iter().enumerate() {
                let (of_packed, of_beside) = (starts[row]..starts[row] + length,
                    beside_starts[row]..beside_starts[row] + length);
                prop_assert_eq!(&packed.labels[of_packed.clone()], &beside.labels[of_beside.clone()]);
                prop_assert_eq!(&packed.input_ids[of_packed], &beside.input_ids[of_beside]);
            }
            prop_assert_eq!(&packed.images, &beside.images);
            let num_labels = |batch: &Batch| {
                batch.labels.iter().filter(|&&label| label != IGNORE_INDEX).count()
            };
            prop_assert_eq!(num_labels(&packed), packed.num_supervised);
            prop_assert_eq!(num_labels(&beside), packed.num_supervised);
            prop_assert_eq!(packed.seq_len, beside.seq_len);
        }
    }

    #[test]
    fn a_batch_of_rejected_rows_is_empty() {
        let batch = Batch::collate(0, Vec::new(), Vec::new(), Padding::Max, 5, 0);
        assert_eq!((batch.batch_size, batch.seq_len, batch.input_ids.len()), (0, 0, 0));
    }
}
