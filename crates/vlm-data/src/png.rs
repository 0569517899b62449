//! Writes preprocessed images as PNG.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::reject::Reject;

/// The PNG of an image `[side, side, 3]` of 8-bit RGB.
///
/// # Errors
/// `UnreadableImage`: a number of values that is not that of the image.
pub(crate) fn png(pixels: &[u8], side: u32) -> Result<Vec<u8>, Reject> {
    let mut bytes = Vec::with_capacity(pixels.len() / 2);
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(pixels, side, side, ExtendedColorType::Rgb8)
        .map_err(|e| Reject::unreadable_image(format!("as PNG: {e}")))?;
    Ok(bytes)
}
