//! The image gain: how much higher the loss is when each row has the images of another row. A model
//! that uses the images has a clear gain; one that only guesses from the text has none.

use std::ops::Range;

use tch::Tensor;
use vlm_data::{Batch, IGNORE_INDEX, ImageData};
use vlm_model::ModelError;

use crate::InferError;

/// Below this gain, in nats per supervised token, the model makes hardly any use of the images:
/// exchanging them changes the perplexity by less than 1%. A model that ignores the images has a
/// gain of zero up to rounding (1e-6), and one that captions images has 0.1 and more.
pub const MIN_IMAGE_GAIN: f64 = 0.01;

/// Collects the image gain over the batches of an evaluation.
#[derive(Debug, Default)]
pub(crate) struct ImageGain {
    /// Sum of the differences of the losses, in nats.
    sum: f64,
    /// Number of supervised tokens of the rows whose images were replaced.
    num_supervised: u64,
    num_rows: u64,
    /// The pixels `[N, S, S, 3]` and the features `[N, P, V]` of the last batch with images, for
    /// batches in which all images are the same.
    previous: Option<(Vec<u8>, Tensor)>,
}

/// The features of a batch's images after they were exchanged.
#[derive(Debug)]
pub(crate) struct Shuffled {
    /// `[N, P, V]`.
    pub(crate) features: Tensor,
    num_supervised: u64,
    num_rows: u64,
}

impl ImageGain {
    /// Gives the rows of `batch` the images of other rows; `features` `[N, P, V]` are those of its
    /// images. `None` if no row can get other images.
    ///
    /// # Errors
    /// Features that do not fit the batch.
    pub(crate) fn shuffle(
        &mut self,
        batch: &Batch,
        features: &Tensor,
    ) -> Result<Option<Shuffled>, InferError> {
        let ImageData::Pixels(pixels) = &batch.image_data else { return Ok(None) };
        let image_bytes = pixels.len() / batch.images.len().max(1);
        let previous = self.previous.replace((pixels.clone(), features.shallow_clone()));
        let (earlier, all_features) = match &previous {
            Some((earlier, of_earlier)) => {
                let both = Tensor::f_cat(&[features, of_earlier], 0).map_err(ModelError::from)?;
                (&earlier[..], both)
            }
            None => (&[][..], features.shallow_clone()),
        };
        let images: Vec<&[u8]> =
            pixels.chunks_exact(image_bytes).chain(earlier.chunks_exact(image_bytes)).collect();
        let rows: Vec<usize> = batch.images.iter().map(|image| image.row).collect();
        let taken = replacements(&rows, images.len(), |a, b| images[a] == images[b]);
        let replaced = |row: usize| {
            rows.iter()
                .zip(taken.iter().enumerate())
                .any(|(&of, (own, &other))| of == row && own != other)
        };
        let num_supervised: Vec<u64> = (0..batch.batch_size)
            .filter(|&row| replaced(row))
            .map(|row| num_labels(batch, row))
            .collect();
        if num_supervised.is_empty() {
            return Ok(None);
        }
        let taken: Vec<i64> = taken.iter().map(|&image| image as i64).collect();
        let taken = vlm_torch::slice_to_device(&taken, features.device())?;
        Ok(Some(Shuffled {
            features: all_features.f_index_select(0, &taken).map_err(ModelError::from)?,
            num_rows: num_supervised.len() as u64,
            num_supervised: num_supervised.iter().sum(),
        }))
    }

    /// Adds a batch whose loss is `loss` with its own images and `shuffled_loss` with others, both
    /// summed over its supervised tokens, in nats.
    pub(crate) fn add(&mut self, shuffled: &Shuffled, loss: f64, shuffled_loss: f64) {
        // Rows that keep their images have the same loss in both sums.
        self.sum += shuffled_loss - loss;
        self.num_supervised += shuffled.num_supervised;
        self.num_rows += shuffled.num_rows;
    }

    /// The gain in nats per supervised token of the rows whose images were replaced; `None` without
    /// such rows.
    pub(crate) fn mean(&self) -> Option<f64> {
        (self.num_supervised > 0).then(|| self.sum / self.num_supervised as f64)
    }

    /// Number of rows whose images were replaced.
    pub(crate) fn num_rows(&self) -> u64 {
        self.num_rows
    }
}

/// Number of supervised tokens of row `row`.
fn num_labels(batch: &Batch, row: usize) -> u64 {
    let start = batch.row_starts()[row];
    let labels = &batch.labels[start..start + batch.lengths[row]];
    labels.iter().filter(|&&label| label != IGNORE_INDEX).count() as u64
}

/// For each image of a batch the image that it is replaced by. `rows` are the rows of the batch's
/// images in order; images from `rows.len()` to `num_images` are those of an earlier batch. A row
/// gets the images of the next row, after the last row the first one, and before an earlier batch's
/// images; the images must differ (`is_same`). If there are none, the row keeps its images. A row
/// with more images than the other one gets these several times.
fn replacements(
    rows: &[usize],
    num_images: usize,
    is_same: impl Fn(usize, usize) -> bool,
) -> Vec<usize> {
    let groups: Vec<Range<usize>> = rows
        .chunk_by(|a, b| a == b)
        .scan(0, |start, group| {
            *start += group.len();
            Some(*start - group.len()..*start)
        })
        .collect();
    let earlier = || (rows.len()..num_images).map(|image| image..image + 1);
    let mut taken = Vec::with_capacity(rows.len());
    for (k, own) in groups.iter().enumerate() {
        let others = groups[k + 1..].iter().chain(&groups[..k]).cloned().chain(earlier());
        let from = |other: &Range<usize>, k: usize| other.start + k % other.len();
        let differs = |other: &Range<usize>| {
            own.clone().enumerate().all(|(k, image)| !is_same(image, from(other, k)))
        };
        match others.into_iter().find(differs) {
            Some(other) => taken.extend((0..own.len()).map(|k| from(&other, k))),
            None => taken.extend(own.clone()),
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_rotated_among_the_rows_of_a_batch() {
        let different = |_, _| false;
        assert_eq!(replacements(&[0, 1, 3], 3, different), [1, 2, 0]);
        // Two images of row 0, one of row 2.
        assert_eq!(replacements(&[0, 0, 2], 3, different), [2, 2, 0]);
    }

    #[test]
    fn a_row_never_gets_an_image_that_it_has() {
        let pictures = ["a", "a", "b", "c"];
        let is_same = |a: usize, b: usize| pictures[a] == pictures[b];
        assert_eq!(replacements(&[0, 1, 2, 3], 4, is_same), [2, 2, 3, 0]);
        assert_eq!(replacements(&[0, 1], 2, is_same), [0, 1], "no other image is there");
    }

    #[test]
    fn a_single_row_borrows_an_image_of_the_batch_before() {
        let pictures = ["a", "a", "b"];
        let is_same = |a: usize, b: usize| pictures[a] == pictures[b];
        assert_eq!(replacements(&[0], 3, is_same), [2]);
        assert_eq!(replacements(&[0], 1, is_same), [0], "the first batch has none before it");
    }

    /// A batch of rows with one image of one byte and two supervised tokens each.
    fn batch(images: &[u8]) -> Batch {
        let num_rows = images.len();
        Batch {
            batch_size: num_rows,
            seq_len: 3,
            labels: [IGNORE_INDEX, 4, 5].repeat(num_rows),
            lengths: vec![3; num_rows],
            image_data: ImageData::Pixels(images.to_vec()),
            images: (0..num_rows).map(|row| vlm_data::ImagePosition { row, start: 0 }).collect(),
            ..Batch::default()
        }
    }

    fn features(images: &[u8]) -> Tensor {
        Tensor::from_slice(images).view([-1, 1, 1])
    }

    #[test]
    fn the_gain_is_per_supervised_token_of_the_rows_with_other_images() {
        let mut gain = ImageGain::default();
        assert!(gain.shuffle(&batch(&[7]), &features(&[7])).unwrap().is_none());
        assert_eq!(gain.mean(), None);
        for (images, others, num_supervised) in
            [(&[7u8, 7][..], None, 0), (&[7, 8, 7], Some([8u8, 7, 8]), 6)]
        {
            let shuffled = gain.shuffle(&batch(images), &features(images)).unwrap();
            assert_eq!(shuffled.is_some(), others.is_some());
            let (Some(shuffled), Some(others)) = (shuffled, others) else { continue };
            assert_eq!(Vec::<u8>::try_from(shuffled.features.view([-1])).unwrap(), others);
            gain.add(&shuffled, 1.0, 4.0);
            assert_eq!((gain.mean(), gain.num_rows()), (Some(3.0 / num_supervised as f64), 3));
        }
    }
}
