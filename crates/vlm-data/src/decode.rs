//! From encoded bytes to 8-bit RGB, with Pillow's conventions and limits against bombs.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::jpeg_scan;
use crate::reject::{Reject, RejectReason};

/// The largest picture that is decoded; larger ones are refused by their header alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Longest side, in pixels.
    pub max_side: u32,
    /// Width times height.
    pub max_pixels: u64,
}

impl Default for ImageLimits {
    /// 16384 pixels a side, 64 megapixels.
    fn default() -> Self {
        Self { max_side: 16_384, max_pixels: 64 << 20 }
    }
}

/// The formats that are read.
const READ: [ImageFormat; 6] = [
    ImageFormat::Jpeg,
    ImageFormat::Png,
    ImageFormat::WebP,
    ImageFormat::Gif,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];

/// Up to 16 bits for each of four channels, and as much again for a decoder's own buffers.
const BYTES_PER_PIXEL: u64 = 16;

/// 8-bit RGB, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RgbPicture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// `[height, width, 3]`.
    pub(crate) pixels: Vec<u8>,
}

impl RgbPicture {
    /// Decodes JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF (its first page); which one, the
    /// content tells.
    /// Converts as Pillow's `convert("RGB")` does: alpha is dropped, not composed; the orientation
    /// in EXIF is ignored; 16-bit grey is clipped at 255, other 16-bit forms keep their high byte.
    ///
    /// # Errors
    /// [`RejectReason::UnreadableImage`] or [`RejectReason::ImageTooLarge`].
    pub(crate) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Self, Reject> {
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|e| unreadable(e.to_string()))?;
        let Some(format) = reader.format().filter(|format| READ.contains(format)) else {
            return Err(unreadable(not_read(bytes)));
        };
        let mut decoder_limits = Limits::default();
        decoder_limits.max_alloc = Some(limits.max_pixels.saturating_mul(BYTES_PER_PIXEL));
        reader.limits(decoder_limits);
        let decoder = reader.into_decoder().map_err(|e| explain(format, &e))?;
        limits.check(decoder.dimensions())?;
        let picture = DynamicImage::from_decoder(decoder).map_err(|e| explain(format, &e))?;
        if matches!(picture, DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_)) {
            return Err(unreadable("32-bit floating-point samples; save it with 8 bits".into()));
        }
        let damage = (format == ImageFormat::Jpeg).then(|| jpeg_scan::damage(bytes)).flatten();
        if let Some(damage) = damage {
            return Err(unreadable(damage.into()));
        }
        Ok(Self { width: picture.width(), height: picture.height(), pixels: to_rgb(picture) })
    }
}

impl ImageLimits {
    fn check(&self, (width, height): (u32, u32)) -> Result<(), Reject> {
        if width == 0 || height == 0 {
            return Err(unreadable(format!("the picture is {width}×{height}")));
        }
        let pixels = u64::from(width) * u64::from(height);
        if width.max(height) > self.max_side || pixels > self.max_pixels {
            return Err(Reject::new(
                RejectReason::ImageTooLarge,
                format!(
                    "{width}×{height} pixels; the limits are {} a side and {} in all; make it \
                     smaller",
                    self.max_side, self.max_pixels
                ),
            ));
        }
        Ok(())
    }
}

fn to_rgb(picture: DynamicImage) -> Vec<u8> {
    // Pillow reads 16-bit colour by its high byte; the conversions of `image` would round.
    let high_bytes = |samples: &[u16], channels: usize| -> Vec<u8> {
        samples
            .chunks_exact(channels)
            .flat_map(|p| [p[0], p[1], p[2]])
            .map(|v| (v >> 8) as u8)
            .collect()
    };
    let grey = |values: Vec<u8>| -> Vec<u8> { values.into_iter().flat_map(|v| [v; 3]).collect() };
    match picture {
        DynamicImage::ImageRgb8(picture) => picture.into_raw(),
        DynamicImage::ImageRgb16(picture) => high_bytes(&picture, 3),
        DynamicImage::ImageRgba16(picture) => high_bytes(&picture, 4),
        DynamicImage::ImageLuma16(picture) => {
            grey(picture.iter().map(|&v| v.min(255) as u8).collect())
        }
        DynamicImage::ImageLumaA16(picture) => {
            grey(picture.chunks_exact(2).map(|p| (p[0] >> 8) as u8).collect())
        }
        DynamicImage::ImageRgba8(picture) => {
            picture.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        other => other.into_rgb8().into_raw(),
    }
}

/// What bytes that are no image of a format that is read are, as far as their beginning tells.
fn not_read(bytes: &[u8]) -> String {
    const EXPECTED: &str = "expected JPEG, PNG, WebP, GIF, BMP or TIFF";
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes).trim_ascii_start();
    let begins = |prefix: &str| {
        text.get(..prefix.len()).is_some_and(|t| t.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    let brand = bytes.get(4..8).filter(|mark| *mark == b"ftyp").and(bytes.get(8..12));
    let found = match brand {
        Some(b"avif" | b"avis") => Some("an AVIF image; save it as JPEG or PNG"),
        Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1") => {
            Some("a HEIC image; save it as JPEG or PNG")
        }
        Some(_) => Some("a video or another ISO media file"),
        None if bytes.is_empty() => Some("an empty file"),
        None if begins("version https://git-lfs") => {
            Some("a Git LFS pointer in place of the image; run `git lfs pull`")
        }
        None if begins("<!doctype html") || begins("<html") => Some("an HTML page"),
        None if begins("<svg") || begins("<?xml") => {
            Some("an SVG or another XML file; save it as PNG")
        }
        None if begins("%PDF") => Some("a PDF document"),
        None if bytes.starts_with(b"\x00\x00\x00\x0cjP") => {
            Some("a JPEG 2000 image; save it as JPEG or PNG")
        }
        None if bytes.starts_with(b"\xff\x0a") => Some("a JPEG XL image; save it as JPEG or PNG"),
        None if bytes.iter().all(|&byte| byte == 0) => Some("nothing but zero bytes"),
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
        _ => unreadable(format!("{format:?}: {error}")),
    }
}

fn unreadable(detail: String) -> Reject {
    Reject::new(RejectReason::UnreadableImage, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn pixels(bytes: &[u8]) -> Vec<u8> {
        RgbPicture::decode(bytes, &ImageLimits::default()).unwrap().pixels
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
            RgbPicture::decode(&bytes, &limits).map_err(|e| e.reason)
        };
        assert!(reason(20, 5).is_ok());
        assert_eq!(reason(21, 1), Err(RejectReason::ImageTooLarge));
        assert_eq!(reason(11, 10), Err(RejectReason::ImageTooLarge));
    }

    #[test]
    fn what_is_no_picture_is_refused_with_its_first_bytes() {
        let page = b"<!DOCTYPE html><html></html>";
        let reject = RgbPicture::decode(page, &ImageLimits::default()).unwrap_err();
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
            let reject = RgbPicture::decode(bytes, &ImageLimits::default()).unwrap_err();
            assert!(reject.detail.contains(found), "{}", reject.detail);
        }
    }

    #[test]
    fn tiff_is_read() {
        let mut bytes = Cursor::new(Vec::new());
        let picture = ImageBuffer::from_fn(5, 3, |x, y| Rgb([x as u8 * 50, y as u8 * 80, 7]));
        let picture = DynamicImage::from(picture);
        picture.write_to(&mut bytes, ImageFormat::Tiff).unwrap();
        assert_eq!(pixels(&bytes.into_inner()), picture.into_bytes());
    }

    #[test]
    fn a_jpeg_cut_anywhere_is_refused() {
        let picture = ImageBuffer::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(picture).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let bytes = bytes.into_inner();
        assert!(RgbPicture::decode(&bytes, &ImageLimits::default()).is_ok());
        for length in 0..bytes.len() - 1 {
            let reject = RgbPicture::decode(&bytes[..length], &ImageLimits::default());
            assert_eq!(
                reject.map_err(|e| e.reason),
                Err(RejectReason::UnreadableImage),
                "{length}"
            );
        }
    }
}
