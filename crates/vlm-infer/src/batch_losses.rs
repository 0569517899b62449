//! The losses of a batch outside of training: with its images, by row, and with the images of other
//! rows. The images are encoded once.

use vlm_data::Batch;
use vlm_model::{ImageInput, ModelError, RowLosses, Vlm};
use vlm_shapes::Dtype;

use crate::InferError;
use crate::device_batch::DeviceBatch;
use crate::image_gain::ImageGain;
use crate::precision::autocast_kind;

/// A batch on the device whose images are encoded.
pub(crate) struct BatchLosses<'a> {
    model: &'a Vlm,
    dtype: Dtype,
    batch: DeviceBatch,
}

impl<'a> BatchLosses<'a> {
    /// Encodes the images of `batch`.
    ///
    /// # Errors
    /// A failure of the model.
    pub(crate) fn new(
        model: &'a Vlm,
        dtype: Dtype,
        mut batch: DeviceBatch,
    ) -> Result<Self, InferError> {
        if let ImageInput::Pixels(pixels) = &batch.model.images {
            let kind = autocast_kind(dtype);
            let features =
                vlm_torch::autocast(model.device(), kind, || model.encode_images(pixels))??;
            batch.model.images = ImageInput::Features(features);
        }
        Ok(Self { model, dtype, batch })
    }

    /// The loss summed over the supervised tokens, in nats, and on request the losses of the rows.
    ///
    /// # Errors
    /// A failure of the model.
    pub(crate) fn loss(&self, by_row: bool) -> Result<(f64, Option<RowLosses>), InferError> {
        let DeviceBatch { model: input, supervised, targets } = &self.batch;
        let kind = autocast_kind(self.dtype);
        let (loss, rows) = vlm_torch::autocast(self.model.device(), kind, || {
            if by_row {
                let (loss, rows) = self.model.loss_by_row(input, supervised, targets)?;
                return Ok((loss, Some(rows)));
            }
            Ok::<_, ModelError>((self.model.loss(input, supervised, targets, false)?, None))
        })??;
        Ok((f64::try_from(&loss.sum).map_err(ModelError::from)?, rows))
    }

    /// Computes the loss with the images of other rows and adds it to `gain`. `batch` is the batch
    /// on the host, and `loss` its loss with its own images.
    ///
    /// # Errors
    /// A failure of the model.
    pub(crate) fn add_image_gain(
        &mut self,
        batch: &Batch,
        loss: f64,
        gain: &mut ImageGain,
    ) -> Result<(), InferError> {
        let ImageInput::Features(features) = &self.batch.model.images else { return Ok(()) };
        let Some(shuffled) = gain.shuffle(batch, features)? else { return Ok(()) };
        self.batch.model.images = ImageInput::Features(shuffled.features.shallow_clone());
        let (shuffled_loss, _) = self.loss(false)?;
        gain.add(&shuffled, loss, shuffled_loss);
        Ok(())
    }
}
