//! Ten ways in which pictures of collected data sets are broken or odd.

use std::fs;
use std::io::Cursor;

use anyhow::{Context, Result};
use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb, RgbImage};

use crate::workspace::Workspace;

/// A way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// Its second half is not there.
    Truncated,
    /// No bytes.
    Empty,
    /// A web page under the picture's name.
    Html,
    /// A GIF called `.jpg`.
    Gif,
    /// A JPEG of the four colours of print.
    Cmyk,
    /// A PNG of 16 bits a channel.
    Png16,
    /// One pixel.
    OneByOne,
    /// 30000×30000 pixels in a small file.
    Huge,
    /// A stretch of zeros amid its data.
    Zeros,
    /// No file.
    Missing,
}

impl Damage {
    /// All of them, in the order in which they are dealt out.
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

    /// For a person.
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

    /// Whether there is a picture in it that can be learned from.
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Gif | Self::Cmyk | Self::Png16 | Self::OneByOne)
    }

    /// Of the file.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png16 | Self::OneByOne | Self::Huge => "png",
            _ => "jpg",
        }
    }
}

/// Damages pictures. What replaces a picture whole is the same for all.
pub struct Damager {
    gif: Vec<u8>,
    cmyk: Vec<u8>,
    png16: Vec<u8>,
    one_by_one: Vec<u8>,
    huge: Vec<u8>,
}

const PAGE: &[u8] = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n";

impl Damager {
    /// `is_wanted`: otherwise nothing is made and nothing can be damaged.
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
        let picture = RgbImage::from_fn(48, 32, |x, y| Rgb(shades(x, y)));
        let deep = ImageBuffer::from_fn(48, 32, |x, y| {
            Rgb(shades(x, y).map(|value| u16::from(value) * 257))
        });
        // No encoder that we have writes one; Pillow wrote this.
        let cmyk = workspace.root().join("tests/golden/preprocess/images/cmyk.jpg");
        Ok(Self {
            gif: encode(picture.into(), ImageFormat::Gif)?,
            cmyk: fs::read(&cmyk).with_context(|| cmyk.display().to_string())?,
            png16: encode(DynamicImage::ImageRgb16(deep), ImageFormat::Png)?,
            one_by_one: encode(RgbImage::new(1, 1).into(), ImageFormat::Png)?,
            huge: huge_png()?,
        })
    }

    /// What is left of the JPEG `picture`; `None`: no file.
    pub fn damage(&self, damage: Damage, picture: &[u8]) -> Option<Vec<u8>> {
        Some(match damage {
            Damage::Truncated => picture[..picture.len() / 2].to_vec(),
            Damage::Empty => Vec::new(),
            Damage::Html => PAGE.to_vec(),
            Damage::Gif => self.gif.clone(),
            Damage::Cmyk => self.cmyk.clone(),
            Damage::Png16 => self.png16.clone(),
            Damage::OneByOne => self.one_by_one.clone(),
            Damage::Huge => self.huge.clone(),
            Damage::Zeros => {
                let mut bytes = picture.to_vec();
                let (start, end) = (start_of_data(picture), picture.len() - 2);
                let quarter = (end - start) / 4;
                bytes[start + quarter..end - quarter].fill(0);
                bytes
            }
            Damage::Missing => return None,
        })
    }
}

fn encode(picture: DynamicImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).context("a damaged picture")?;
    Ok(bytes.into_inner())
}

/// Where a JPEG's compressed data begins, within a few bytes.
fn start_of_data(jpeg: &[u8]) -> usize {
    jpeg.windows(2).position(|pair| pair == [0xFF, 0xDA]).map_or(0, |at| at + 14)
}

/// One bit a pixel, all of them black: 112 MB of data, 900 megapixels when decoded.
fn huge_png() -> Result<Vec<u8>> {
    const SIDE: u32 = 30_000;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE, SIDE);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().context("a damaged picture")?;
    let row = vec![0; SIDE.div_ceil(8) as usize];
    let mut stream = writer.stream_writer().context("a damaged picture")?;
    for _ in 0..SIDE {
        std::io::Write::write_all(&mut stream, &row).context("a damaged picture")?;
    }
    stream.finish().context("a damaged picture")?;
    drop(writer);
    Ok(bytes)
}
