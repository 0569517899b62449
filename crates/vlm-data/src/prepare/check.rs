//! Checks one row of the source and makes the row of a shard of it, or tells why it cannot be used.

use std::sync::Arc;

use bytes::Bytes;

use super::settings::ImageStore;
use crate::chat::ChatTokenizer;
use crate::decode::{ImageLimits, RgbImage, image_size};
use crate::png::png;
use crate::reject::Reject;
use crate::row_error::RowError;
use crate::rows::RowImage;
use crate::shards::ShardRow;
use crate::source::RowSource;

pub(super) struct RowChecker {
    pub(super) source: Arc<dyn RowSource>,
    pub(super) tokenizer: Arc<ChatTokenizer>,
    pub(super) tokens_per_image: usize,
    pub(super) max_seq_len: usize,
    pub(super) image_store: ImageStore,
    pub(super) limits: ImageLimits,
}

/// A row that can be trained on, with what the statistics need.
pub(super) struct KeptRow {
    pub(super) row: ShardRow,
    /// Whether the length limit cut some of its tokens.
    pub(super) is_cut: bool,
    /// Width and height of each image of the input.
    pub(super) image_sizes: Vec<(u32, u32)>,
}

impl RowChecker {
    pub(super) fn check(&self, index: usize) -> Result<KeptRow, RowError> {
        let row = self.source.row(index)?;
        let whole = self.tokenizer.encode_row(&row, self.tokens_per_image, usize::MAX)?;
        let num_tokens = whole.input_ids.len();
        let encoded = whole.cut(self.max_seq_len, self.tokens_per_image)?;
        let (mut images, mut image_sizes) = (Vec::new(), Vec::new());
        for (k, image) in row.images.iter().enumerate() {
            let (bytes, size) = self.read_image(index, k, image).map_err(|error| match error {
                RowError::Reject(Reject { reason, detail }) if !detail.contains(&image.name) => {
                    RowError::Reject(Reject::new(reason, format!("{:?}: {detail}", image.name)))
                }
                other => other,
            })?;
            images.push((bytes.clone(), *blake3::hash(&bytes).as_bytes()));
            image_sizes.push(size);
        }
        let conversations =
            serde_json::to_string(&row.turns).map_err(|e| Reject::invalid_row(e.to_string()))?;
        Ok(KeptRow {
            is_cut: encoded.input_ids.len() < num_tokens,
            image_sizes,
            row: ShardRow { encoded, images, conversations, location: self.source.locate(index) },
        })
    }

    /// The bytes to store, and width and height of the original image.
    fn read_image(
        &self,
        index: usize,
        k: usize,
        image: &RowImage,
    ) -> Result<(Bytes, (u32, u32)), RowError> {
        let bytes = self.source.image_bytes(index, k, image)?;
        match &self.image_store {
            ImageStore::Original => {
                let decoded = RgbImage::decode(&bytes, &self.limits)?;
                Ok((bytes, (decoded.width, decoded.height)))
            }
            ImageStore::Resized(processor) => {
                let crop = processor.crop_u8(&bytes)?;
                let size = image_size(&bytes).unwrap_or_default();
                Ok((png(&crop, processor.image_size() as u32)?.into(), size))
            }
        }
    }
}
