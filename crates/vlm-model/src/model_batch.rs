//! The input of the vision-language model.
//!
//! Dimensions: B batch · T tokens · N images · P patches · V vision width · S image size

use tch::{Device, Tensor};
use vlm_display::count;

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

    /// Checks the shape of the ids, and that all are of a vocabulary of `vocab_size`. Ids on a GPU
    /// are not read, because that would wait for it.
    ///
    /// # Errors
    /// The shape of `input_ids` is wrong, or an id is not in the vocabulary.
    pub(crate) fn check_ids(&self, vocab_size: i64) -> Result<(), ModelError> {
        self.rows()?;
        if self.input_ids.device() != Device::Cpu || self.input_ids.numel() == 0 {
            return Ok(());
        }
        for id in [self.input_ids.f_min()?, self.input_ids.f_max()?] {
            let id = i64::try_from(&id)?;
            if !(0..vocab_size).contains(&id) {
                return Err(ModelError::Shape(format!(
                    "the token id {id} is not in the model's vocabulary of {vocab_size}; use the \
                     tokenizer that the model was trained with"
                )));
            }
        }
        Ok(())
    }

    /// Index of each image's first placeholder in the flattened ids, where an image takes
    /// `tokens_per_image` tokens.
    ///
    /// # Errors
    /// The shape of `input_ids` is wrong, or an image's placeholders do not fit in its row.
    pub(crate) fn flat_image_starts(&self, tokens_per_image: i64) -> Result<Vec<i64>, ModelError> {
        let rows = self.rows()?;
        let flat_start = |&(row, start): &(i64, i64)| {
            let of_row = usize::try_from(row).ok().and_then(|row| rows.get(row));
            match of_row.filter(|(_, len)| start >= 0 && start + tokens_per_image <= *len) {
                Some((row_start, _)) => Ok(row_start + start),
                None => Err(ModelError::Shape(format!(
                    "an image of {} at row {row}, position {start} does not fit into \
                     a batch of {}{}",
                    count(tokens_per_image, "token"),
                    count(rows.len(), "row"),
                    of_row.map_or(String::new(), |(_, len)| format!(" ({len} tokens there)")),
                ))),
            }
        };
        self.image_starts.iter().map(flat_start).collect()
    }
}
