//! The input of the vision-language model.
//!
//! Dimensions: B batch · T tokens · N images · P patches · V vision width · S image size

use tch::Tensor;

use crate::ModelError;

/// The images of a batch.
#[derive(Debug)]
pub enum ImageInput {
    /// The batch has no images.
    None,
    /// Normalised pixels `[N, 3, S, S]`, which the model's vision encoder encodes.
    Pixels(Tensor),
    /// Patch features `[N, P, V]` that the vision encoder computed before.
    Features(Tensor),
}

/// A batch on the model's device.
#[derive(Debug)]
pub struct ModelBatch {
    /// Token ids `[B, T]`, i64, padded on the right; or, of a packed batch, `[1, sum of lengths]`.
    pub input_ids: Tensor,
    /// The rows' lengths, `[B]`, if the batch is packed, that is, if its rows are concatenated.
    pub packed_lengths: Option<Vec<i64>>,
    /// The images, in the order of `image_starts`.
    pub images: ImageInput,
    /// Position of each image's first placeholder: `(row, position in the row)`.
    pub image_starts: Vec<(i64, i64)>,
}

impl ModelBatch {
    /// Index of each row's first token in the flattened ids, and its number of tokens.
    ///
    /// # Errors
    /// The shape of `input_ids` is wrong.
    pub(crate) fn rows(&self) -> Result<Vec<(i64, i64)>, ModelError> {
        let size = self.input_ids.size();
        match (&self.packed_lengths, size.as_slice()) {
            (None, &[rows, len]) => Ok((0..rows).map(|row| (row * len, len)).collect()),
            (Some(lengths), &[1, total]) if lengths.iter().sum::<i64>() == total => {
                let start = |end: &mut i64, &len: &i64| {
                    *end += len;
                    Some((*end - len, len))
                };
                Ok(lengths.iter().scan(0, start).collect())
            }
            (None, _) => {
                Err(ModelError::Shape(format!("input_ids have shape {size:?}; expected [B, T]")))
            }
            (Some(lengths), _) => Err(ModelError::Shape(format!(
                "input_ids have shape {size:?}; expected [1, {}], for packed rows of {lengths:?} \
                 tokens",
                lengths.iter().sum::<i64>()
            ))),
        }
    }
}
