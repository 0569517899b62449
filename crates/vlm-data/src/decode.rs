//! Decodes images to 8-bit RGB, with the conventions of Pillow and with limits against
//! decompression bombs.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::caught::caught;
use crate::jpeg_scan;
use crate::limits::{MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE};
use crate::reject::{Reject, RejectReason};
use crate::row_text::without_mark;
use crate::sniff::starts_with_word;
use crate::tiff_tags;

/// The largest image that is decoded. A larger one is refused as soon as its header is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageLimits {
    /// Longest side, in pixels.
    pub max_side: u32,
    /// Largest product of width and height.
    pub max_pixels: u64,
}

impl Default for ImageLimits {
    /// 16384 pixels a side, 64 megapixels.
    fn default() -> Self {
        Self { max_side: MAX_IMAGE_SIDE, max_pixels: MAX_IMAGE_PIXELS }
    }
}

/// The supported formats.
const READ: [ImageFormat; 6] = [
    ImageFormat::Jpeg,
    ImageFormat::Png,
    ImageFormat::WebP,
    ImageFormat::Gif,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];

/// Up to 16 bits for each of four channels, and the same again for the buffers of a decoder.
const BYTES_PER_PIXEL: u64 = 16;

/// An image of 8-bit RGB, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RgbImage {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// `[height, width, 3]`.
    pub(crate) pixels: Vec<u8>,
}

/// Width and height of an encoded image, from its header.
pub(crate) fn image_size(bytes: &[u8]) -> Option<(u32, u32)> {
    if tiff_tags::damage(bytes).is_some() {
        return None;
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    caught(|| reader.into_dimensions().ok()).ok().flatten()
}

impl RgbImage {
    /// Decodes JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF (its first page); the content
    /// tells which. Converts as Pillow's `convert("RGB")`: alpha is dropped, not composed; the
    /// orientation in EXIF is ignored; 16-bit grey is clipped at 255, other 16-bit forms keep their
    /// high byte.
    ///
    /// # Errors
    /// [`RejectReason::UnreadableImage`] or [`RejectReason::ImageTooLarge`].
    pub(crate) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Self, Reject> {
        caught(|| Self::try_decode(bytes, limits)).unwrap_or_else(|message| {
            Err(Reject::unreadable_image(format!("the image is damaged ({message})")))
        })
    }

    fn try_decode(bytes: &[u8], limits: &ImageLimits) -> Result<Self, Reject> {
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|e| Reject::unreadable_image(e.to_string()))?;
        let Some(format) = reader.format().filter(|format| READ.contains(format)) else {
            return Err(Reject::unreadable_image(not_read(bytes)));
        };
        let false_tag = (format == ImageFormat::Tiff).then(|| tiff_tags::damage(bytes)).flatten();
        if let Some(damage) = false_tag {
            return Err(Reject::unreadable_image(damage));
        }
        let mut decoder_limits = Limits::default();
        decoder_limits.max_alloc = Some(limits.max_pixels.saturating_mul(BYTES_PER_PIXEL));
        reader.limits(decoder_limits);
        let decoder = reader.into_decoder().map_err(|e| explain(format, &e))?;
        limits.check(decoder.dimensions())?;
        let image = DynamicImage::from_decoder(decoder).map_err(|e| explain(format, &e))?;
        if matches!(image, DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_)) {
            return Err(Reject::unreadable_image(
                "expected integer samples, found 32-bit floating point; save it with 8 bits",
            ));
        }
        let damage = (format == ImageFormat::Jpeg).then(|| jpeg_scan::damage(bytes)).flatten();
        if let Some(damage) = damage {
            return Err(Reject::unreadable_image(damage));
        }
        Ok(Self { width: image.width(), height: image.height(), pixels: to_rgb(image) })
    }
}

impl ImageLimits {
    fn check(&self, (width, height): (u32, u32)) -> Result<(), Reject> {
        if width == 0 || height == 0 {
            return Err(Reject::unreadable_image(format!("the image has {width}×{height} pixels")));
        }
        let pixels = u64::from(width) * u64::from(height);
        if width.max(height) > self.max_side || pixels > self.max_pixels {
            return Err(Reject::new(
                RejectReason::ImageTooLarge,
                format!(
                    "{width}×{height} pixels; the limits are {} per side and {} in total; make the \
                     image smaller",
                    self.max_side, self.max_pixels
                ),
            ));
        }
        Ok(())
    }
}

fn to_rgb(image: DynamicImage) -> Vec<u8> {
    // Pillow takes the high byte of 16-bit colour; the conversions of the crate `image` would
    // round.
    let high_bytes = |samples: &[u16], channels: usize| -> Vec<u8> {
        samples
            .chunks_exact(channels)
            .flat_map(|p| [p[0], p[1], p[2]])
            .map(|v| (v >> 8) as u8)
            .collect()
    };
    let grey = |values: Vec<u8>| -> Vec<u8> { values.into_iter().flat_map(|v| [v; 3]).collect() };
    match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageRgb16(image) => high_bytes(&image, 3),
        DynamicImage::ImageRgba16(image) => high_bytes(&image, 4),
        DynamicImage::ImageLuma16(image) => grey(image.iter().map(|&v| v.min(255) as u8).collect()),
        DynamicImage::ImageLumaA16(image) => {
            grey(image.chunks_exact(2).map(|p| (p[0] >> 8) as u8).collect())
        }
        DynamicImage::ImageRgba8(image) => {
            image.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        other => other.into_rgb8().into_raw(),
    }
}

/// Describes bytes that are no image of a supported format, as far as their first bytes tell.
fn not_read(bytes: &[u8]) -> String {
    const EXPECTED: &str = "expected JPEG, PNG, WebP, GIF, BMP or TIFF";
    let text = without_mark(bytes).trim_ascii_start();
    let begins = |prefix: &str| starts_with_word(text, prefix);
    let brand = bytes.get(4..8).filter(|mark| *mark == b"ftyp").and(bytes.get(8..12));
    let found = match brand {
        Some(b"avif" | b"avis") => Some("an AVIF image; save it as JPEG or PNG"),
        Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1") => {
            Some("a HEIC image; save it as JPEG or PNG")
        }
        Some(_) => Some("a video or another ISO media file"),
        None if bytes.is_empty() => Some("an empty file"),
        None if begins("version https://git-lfs") => {
            Some("a Git LFS pointer instead of the image; run `git lfs pull`")
        }
        None if begins("<!doctype html") || begins("<html") => Some("an HTML page"),
        None if begins("<svg") || begins("<?xml") => {
            Some("an SVG or another XML file; save it as PNG")
        }
        None if matches!(bytes.get(..4), Some(b"II+\0" | b"MM\0+")) => {
            Some("a BigTIFF image; save it as TIFF or PNG")
        }
        None if begins("%PDF") => Some("a PDF document"),
        None if bytes.starts_with(b"\x00\x00\x00\x0cjP") => {
            Some("a JPEG 2000 image; save it as JPEG or PNG")
        }
        None if bytes.starts_with(b"\xff\x0a") => Some("a JPEG XL image; save it as JPEG or PNG"),
        None if bytes.iter().all(|&byte| byte == 0) => Some("only zero bytes"),
        None => None,
    };
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(16)]).into_owned();
    match found {
        Some(found) => format!("{EXPECTED}, found {found} (it begins with {start:?})"),
        None => format!("{EXPECTED}; the file begins with {start:?}"),
    }
}

fn explain(format: ImageFormat, error: &image::ImageError) -> Reject {
    match error {
        image::ImageError::Limits(_) => {
            Reject::new(RejectReason::ImageTooLarge, format!("{format:?}: {error}"))
        }
        _ => Reject::unreadable_image(format!("{format:?}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn pixels(bytes: &[u8]) -> Vec<u8> {
        RgbImage::decode(bytes, &ImageLimits::default()).unwrap().pixels
    }

    #[test]
    fn colour_forms_become_what_pillow_makes_of_them() {
        // Pillow: Image.fromarray / Image.new of each form, saved as PNG, opened, convert("RGB").
        let at = |bytes: Vec<u8>| pixels(&bytes);
        assert_eq!(at(png(ImageBuffer::from_pixel(1, 1, Rgba([9u8, 8, 7, 0])))), [9, 8, 7]);
        assert_eq!(at(png(ImageBuffer::from_pixel(1, 1, LumaA([9u8, 0])))), [9; 3]);
        assert_eq!(at(png(ImageBuffer::from_pixel(1, 1, Luma([300u16])))), [255; 3]);
        assert_eq!(at(png(ImageBuffer::from_pixel(1, 1, Luma([200u16])))), [200; 3]);
        assert_eq!(
            at(png(ImageBuffer::from_pixel(1, 1, Rgb([0x12ffu16, 1, 0xff00])))),
            [18, 0, 255]
        );
    }

    #[test]
    fn a_header_that_announces_too_much_is_refused_before_decoding() {
        let limits = ImageLimits { max_side: 20, max_pixels: 100 };
        let reason = |width, height| {
            let bytes = png(ImageBuffer::from_pixel(width, height, Luma([0u8])));
            RgbImage::decode(&bytes, &limits).map_err(|e| e.reason)
        };
        assert!(reason(20, 5).is_ok());
        assert_eq!(reason(21, 1), Err(RejectReason::ImageTooLarge));
        assert_eq!(reason(11, 10), Err(RejectReason::ImageTooLarge));
    }

    #[test]
    fn what_is_no_picture_is_refused_with_its_first_bytes() {
        let page = b"<!DOCTYPE html><html></html>";
        let reject = RgbImage::decode(page, &ImageLimits::default()).unwrap_err();
        assert_eq!(reject.reason, RejectReason::UnreadableImage);
        assert!(reject.detail.contains("<!DOCTYPE"), "{}", reject.detail);
        for (bytes, found) in [
            (&b""[..], "empty"),
            (b"\0\0\0\x1cftypavif\0\0", "AVIF"),
            (b"\0\0\0\x1cftypheic\0\0", "HEIC"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"<svg xmlns=\"x\"/>", "SVG"),
            (b"%PDF-1.7", "PDF"),
        ] {
            let reject = RgbImage::decode(bytes, &ImageLimits::default()).unwrap_err();
            assert!(reject.detail.contains(found), "{}", reject.detail);
        }
    }

    #[test]
    fn tiff_is_read() {
        let mut bytes = Cursor::new(Vec::new());
        let image = ImageBuffer::from_fn(5, 3, |x, y| Rgb([x as u8 * 50, y as u8 * 80, 7]));
        let image = DynamicImage::from(image);
        image.write_to(&mut bytes, ImageFormat::Tiff).unwrap();
        assert_eq!(pixels(&bytes.into_inner()), image.into_bytes());
    }

    #[test]
    fn a_jpeg_cut_anywhere_is_refused() {
        let image = ImageBuffer::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let bytes = bytes.into_inner();
        assert!(RgbImage::decode(&bytes, &ImageLimits::default()).is_ok());
        for length in 0..bytes.len() - 1 {
            let reject = RgbImage::decode(&bytes[..length], &ImageLimits::default());
            assert_eq!(
                reject.map_err(|e| e.reason),
                Err(RejectReason::UnreadableImage),
                "{length}"
            );
        }
    }
}
