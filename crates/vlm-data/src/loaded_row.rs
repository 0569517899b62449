//! A single row as the loader makes it, with what a person needs to check it.

use crate::encoded_row::EncodedRow;
use crate::png::png;
use crate::reject::Reject;

/// A row as it goes into a batch.
#[derive(Debug, Clone)]
pub struct LoadedRow {
    /// The token ids, truncated, and which of them are learned.
    pub encoded: EncodedRow,
    /// Number of tokens before the truncation.
    pub num_tokens: usize,
    /// The images, in the order of `encoded.image_starts`.
    pub images: Vec<LoadedImage>,
}

/// An image of a row as it goes into a batch.
#[derive(Debug, Clone)]
pub struct LoadedImage {
    /// The name of its file, or a name for messages.
    pub name: String,
    /// Width of the encoded image, in pixels.
    pub width: u32,
    /// Height of the encoded image, in pixels.
    pub height: u32,
    /// S: side of the preprocessed image, in pixels.
    pub side: u32,
    /// `[S, S, 3]`: the image after resizing and cropping, before the normalization.
    pub pixels: Vec<u8>,
}

impl LoadedImage {
    /// The preprocessed image as a PNG file.
    ///
    /// # Errors
    /// A number of `pixels` that is not that of the side.
    pub fn to_png(&self) -> Result<Vec<u8>, Reject> {
        png(&self.pixels, self.side)
    }
}
