//! Copies batches to the device as the tensors that the model takes.

use tch::{Device, Kind, Tensor};
use vlm_data::{Batch, Features, FeaturesDtype, IGNORE_INDEX, ImageData, ImageProcessor};
use vlm_model::{ImageInput, ModelBatch, ModelError};
use vlm_torch::slice_to_device;

use crate::InferError;

/// A batch on the device.
#[derive(Debug)]
pub struct DeviceBatch {
    /// Input of the model.
    pub model: ModelBatch,
    /// Positions of the supervised tokens in the flattened `input_ids`, `[S]`, i64.
    pub supervised: Tensor,
    /// Label of each supervised token, `[S]`, i64.
    pub targets: Tensor,
}

/// Copies batches to a device.
#[derive(Debug)]
pub struct Transfer {
    device: Device,
    normalizer: Normalizer,
}

/// Normalizes pixels on the device, which is the last step of the preprocessing.
#[derive(Debug)]
pub struct Normalizer {
    device: Device,
    image_size: i64,
    /// Normalized value of each level of each channel, `[3 · 256]`, on the device.
    levels: Tensor,
    /// Index of the first level of each channel, `[1, 3, 1, 1]`, on the device.
    first_level: Tensor,
}

impl Normalizer {
    /// The normalization of `processor`.
    pub fn new(device: Device, processor: &ImageProcessor) -> Self {
        let levels = processor.levels();
        Self {
            device,
            image_size: processor.image_size() as i64,
            levels: Tensor::from_slice(levels.as_flattened()).to_device(device),
            first_level: Tensor::from_slice(&[0i32, 256, 512]).view([1, 3, 1, 1]).to_device(device),
        }
    }

    /// Number of bytes of an image before the normalization.
    pub fn bytes_per_image(&self) -> usize {
        (self.image_size * self.image_size * 3) as usize
    }

    /// Normalizes pixels `[N, S, S, 3]` (u8) to `[N, 3, S, S]` (f32). The normalization is done on
    /// the device, so that only a quarter of the bytes are copied. The values are looked up in a
    /// table, so that they are bitwise equal on every device.
    ///
    /// # Errors
    /// A number of bytes that is not that of whole images; a device that is out of memory.
    pub fn normalized(&self, bytes: &[u8]) -> Result<Tensor, InferError> {
        let side = self.image_size;
        let num_images = bytes.len() as i64 / (side * side * 3);
        let shape = [num_images, side, side, 3];
        let pixels = vlm_torch::bytes_to_device(bytes, &shape, Kind::Uint8, self.device)?;
        let at = pixels.permute([0, 3, 1, 2]).to_kind(Kind::Int) + &self.first_level;
        let values = self.levels.f_index_select(0, &at.reshape([-1])).map_err(ModelError::from)?;
        Ok(values.view([num_images, 3, side, side]))
    }
}

impl Transfer {
    /// Copies to `device`, with the normalization of `processor`.
    pub fn new(device: Device, processor: &ImageProcessor) -> Self {
        Self { device, normalizer: Normalizer::new(device, processor) }
    }

    /// Copies `batch` to the device. On a GPU the copies are asynchronous, from page-locked memory.
    ///
    /// # Errors
    /// Pixels or features with a wrong shape; a device that is out of memory.
    pub fn send(&self, batch: &Batch) -> Result<DeviceBatch, InferError> {
        let lengths = || batch.lengths.iter().map(|&length| length as i64).collect();
        let packed_lengths: Option<Vec<i64>> = batch.is_packed.then(lengths);
        let shape = match packed_lengths {
            Some(_) => [1, batch.input_ids.len() as i64],
            None => [batch.batch_size as i64, batch.seq_len as i64],
        };
        let supervised: Vec<i64> = (0..batch.labels.len() as i64)
            .filter(|&at| batch.labels[at as usize] != IGNORE_INDEX)
            .collect();
        let targets: Vec<i64> = supervised.iter().map(|&at| batch.labels[at as usize]).collect();
        let images = match &batch.image_data {
            ImageData::None => ImageInput::None,
            ImageData::Pixels(bytes) => ImageInput::Pixels(self.normalizer.normalized(bytes)?),
            ImageData::Features(features) => ImageInput::Features(self.features(features)?),
        };
        let start = |image: &vlm_data::ImagePosition| (image.row as i64, image.start as i64);
        Ok(DeviceBatch {
            model: ModelBatch {
                input_ids: slice_to_device(&batch.input_ids, self.device)?.view(shape),
                packed_lengths,
                images,
                image_starts: batch.images.iter().map(start).collect(),
            },
            supervised: slice_to_device(&supervised, self.device)?,
            targets: slice_to_device(&targets, self.device)?,
        })
    }

    /// Cached features as a tensor `[N, P, V]`, converted to float32 on the device.
    fn features(&self, features: &Features) -> Result<Tensor, InferError> {
        let (patches, width) = (features.num_patches, features.hidden_size);
        let num_images = features.bytes.len() / (patches * width * features.dtype.size());
        let shape = [num_images, patches, width].map(|n| n as i64);
        let kind = features_kind(features.dtype);
        let sent = vlm_torch::bytes_to_device(&features.bytes, &shape, kind, self.device)?;
        Ok(sent.to_kind(Kind::Float))
    }
}

/// The type of libtorch for a type in which features are stored.
pub fn features_kind(dtype: FeaturesDtype) -> Kind {
    match dtype {
        FeaturesDtype::Float32 => Kind::Float,
        FeaturesDtype::Bfloat16 => Kind::BFloat16,
        FeaturesDtype::Float16 => Kind::Half,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_on_the_device_are_bitwise_equal_to_those_of_the_processor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("preprocessor_config.json");
        std::fs::write(&path, r#"{"size": 16, "crop_size": 16}"#).unwrap();
        let processor = ImageProcessor::from_file(&path).unwrap();
        // Two images with every level in every channel.
        let crops: Vec<u8> = (0..2 * 16 * 16 * 3).map(|at| (at / 3 + at % 3) as u8).collect();
        let batch = Batch {
            batch_size: 1,
            seq_len: 2,
            input_ids: vec![1, 2],
            labels: vec![IGNORE_INDEX, 7],
            image_data: ImageData::Pixels(crops.clone()),
            ..Batch::default()
        };
        let sent = Transfer::new(Device::Cpu, &processor).send(&batch).unwrap();
        let ImageInput::Pixels(pixels) = sent.model.images else { panic!("no pixels") };
        assert_eq!(pixels.size(), [2, 3, 16, 16]);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let found = Vec::<f32>::try_from(pixels.flatten(0, -1)).unwrap();
        assert_eq!(bits(found), bits(processor.normalize(&crops)));
        assert_eq!(Vec::<i64>::try_from(sent.supervised).unwrap(), [1]);
        assert_eq!(Vec::<i64>::try_from(sent.targets).unwrap(), [7]);
    }
}
