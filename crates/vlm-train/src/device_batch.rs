//! From the host's batch to the model's: tensors on the device.

use tch::{Device, Tensor};
use vlm_data::{Batch, IGNORE_INDEX};
use vlm_model::{ImageInput, ModelBatch};

/// A batch as the model takes it, with the positions that are learned from.
#[derive(Debug)]
pub struct DeviceBatch {
    /// The model's input.
    pub model: ModelBatch,
    /// Flat positions in `[B · T]` of the supervised tokens, `[S]`, i64.
    pub supervised: Tensor,
    /// What each of them should predict, `[S]`, i64.
    pub targets: Tensor,
}

impl DeviceBatch {
    /// Copies `batch` to `device`; `image_size` is the side of its pictures in pixels.
    pub fn new(batch: &Batch, image_size: i64, device: Device) -> Self {
        let shape = [batch.batch_size as i64, batch.seq_len as i64];
        let supervised: Vec<i64> = (0..batch.labels.len() as i64)
            .filter(|&at| batch.labels[at as usize] != IGNORE_INDEX)
            .collect();
        let targets: Vec<i64> = supervised.iter().map(|&at| batch.labels[at as usize]).collect();
        let to_device = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let images = if batch.images.is_empty() {
            ImageInput::None
        } else {
            let pixels = Tensor::from_slice(&batch.pixel_values);
            ImageInput::Pixels(pixels.view([-1, 3, image_size, image_size]).to_device(device))
        };
        let place = |image: &vlm_data::ImagePlace| (image.row as i64, image.start as i64);
        Self {
            model: ModelBatch {
                input_ids: to_device(&batch.input_ids).view(shape),
                images,
                image_starts: batch.images.iter().map(place).collect(),
            },
            supervised: to_device(&supervised),
            targets: to_device(&targets),
        }
    }
}
