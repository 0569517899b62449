//! Ten kinds of broken or unusual images that occur in collected data sets.

use std::fs;
use std::io::Cursor;

use anyhow::{Context, Result};
use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb, RgbImage};

use crate::workspace::Workspace;

/// A kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// The second half of the file is missing.
    Truncated,
    /// The file is empty.
    Empty,
    /// A web page under the image's name.
    Html,
    /// A GIF called `.jpg`.
    Gif,
    /// A JPEG in CMYK colours.
    Cmyk,
    /// A PNG with 16 bits per channel.
    Png16,
    /// An image of one pixel.
    OneByOne,
    /// An image of 30000×30000 pixels in a small file.
    Huge,
    /// A run of zero bytes within the image data.
    Zeros,
    /// The file does not exist.
    Missing,
}

impl Damage {
    /// Every kind, in the order in which they are used.
    pub const ALL: [Self; 10] = [
        Self::Truncated,
        Self::Empty,
        Self::Html,
        Self::Gif,
        Self::Cmyk,
        Self::Png16,
        Self::OneByOne,
        Self::Huge,
        Self::Zeros,
        Self::Missing,
    ];

    /// Name of the kind in the report and in `damaged.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Empty => "empty",
            Self::Html => "HTML named .jpg",
            Self::Gif => "GIF named .jpg",
            Self::Cmyk => "CMYK",
            Self::Png16 => "16-bit PNG",
            Self::OneByOne => "1×1",
            Self::Huge => "30000×30000",
            Self::Zeros => "zero bytes inside",
            Self::Missing => "missing",
        }
    }

    /// Whether the file is still a valid image that a row can use.
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Gif | Self::Cmyk | Self::Png16 | Self::OneByOne)
    }

    /// Extension of the file's name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png16 | Self::OneByOne | Self::Huge => "png",
            _ => "jpg",
        }
    }
}

/// Damages images. The files that replace an image as a whole are made once.
pub struct Damager {
    gif: Vec<u8>,
    cmyk: Vec<u8>,
    png16: Vec<u8>,
    one_by_one: Vec<u8>,
    huge: Vec<u8>,
}

const PAGE: &[u8] = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n";

impl Damager {
    /// Makes the replacement files; with `is_wanted` false they stay empty, and nothing may be
    /// damaged.
    pub fn new(workspace: &Workspace, is_wanted: bool) -> Result<Self> {
        if !is_wanted {
            let none = Vec::new;
            return Ok(Self {
                gif: none(),
                cmyk: none(),
                png16: none(),
                one_by_one: none(),
                huge: none(),
            });
        }
        let shades = |x: u32, y: u32| [(x * 5) as u8, (y * 7) as u8, (x ^ y) as u8];
        let image = RgbImage::from_fn(48, 32, |x, y| Rgb(shades(x, y)));
        let deep = ImageBuffer::from_fn(48, 32, |x, y| {
            Rgb(shades(x, y).map(|value| u16::from(value) * 257))
        });
        // The `image` crate cannot write CMYK; Pillow wrote this file.
        let cmyk = workspace.root().join("tests/golden/preprocess/images/cmyk.jpg");
        Ok(Self {
            gif: encode(image.into(), ImageFormat::Gif)?,
            cmyk: fs::read(&cmyk).with_context(|| cmyk.display().to_string())?,
            png16: encode(DynamicImage::ImageRgb16(deep), ImageFormat::Png)?,
            one_by_one: encode(RgbImage::new(1, 1).into(), ImageFormat::Png)?,
            huge: huge_png()?,
        })
    }

    /// The damaged version of the JPEG `jpeg`; `None` where the file must be missing.
    pub fn damage(&self, damage: Damage, jpeg: &[u8]) -> Option<Vec<u8>> {
        Some(match damage {
            Damage::Truncated => jpeg[..jpeg.len() / 2].to_vec(),
            Damage::Empty => Vec::new(),
            Damage::Html => PAGE.to_vec(),
            Damage::Gif => self.gif.clone(),
            Damage::Cmyk => self.cmyk.clone(),
            Damage::Png16 => self.png16.clone(),
            Damage::OneByOne => self.one_by_one.clone(),
            Damage::Huge => self.huge.clone(),
            Damage::Zeros => {
                let mut bytes = jpeg.to_vec();
                let (start, end) = (start_of_data(jpeg), jpeg.len() - 2);
                let quarter = (end - start) / 4;
                bytes[start + quarter..end - quarter].fill(0);
                bytes
            }
            Damage::Missing => return None,
        })
    }
}

fn encode(image: DynamicImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).context("encoding a damaged image")?;
    Ok(bytes.into_inner())
}

/// Approximate position of the first byte of a JPEG's compressed data.
fn start_of_data(jpeg: &[u8]) -> usize {
    jpeg.windows(2).position(|pair| pair == [0xFF, 0xDA]).map_or(0, |at| at + 14)
}

/// A black PNG with one bit per pixel: 112 MB of data, 900 megapixels when decoded.
fn huge_png() -> Result<Vec<u8>> {
    const SIDE: u32 = 30_000;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE, SIDE);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().context("encoding a damaged image")?;
    let row = vec![0; SIDE.div_ceil(8) as usize];
    let mut stream = writer.stream_writer().context("encoding a damaged image")?;
    for _ in 0..SIDE {
        std::io::Write::write_all(&mut stream, &row).context("encoding a damaged image")?;
    }
    stream.finish().context("encoding a damaged image")?;
    drop(writer);
    Ok(bytes)
}
