//! Generated images, so that every machine measures with the same bytes.

use std::path::Path;

use anyhow::{Context, Result};
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

/// Width and height in pixels, typical of the images of COCO and LLaVA.
pub const SIZE: (u32, u32) = (500, 375);
/// JPEG quality that gives files about as large as photographs of this size (40 to 70 kB).
const QUALITY: u8 = 88;

/// Writes `count` JPEG images of size [`SIZE`] into `folder`.
pub fn write(folder: &Path, count: u32) -> Result<()> {
    for index in 0..count {
        let path = folder.join(format!("{index:02}.jpg"));
        std::fs::write(&path, jpeg(index, SIZE)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A generated image of width and height `size`, as JPEG.
pub fn jpeg(seed: u32, size: (u32, u32)) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(&draw(seed, size))?;
    Ok(bytes)
}

/// Noise whose amplitude falls with its frequency, as in photographs, with an edge.
fn draw(seed: u32, (width, height): (u32, u32)) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let mut rgb = [0f32; 3];
        for (channel, value) in rgb.iter_mut().enumerate() {
            // Grey noise common to all channels, and weaker noise of each channel.
            let grey = octaves(seed, x, y, 0..8);
            let colour = octaves(seed.wrapping_add(1000 * (channel as u32 + 1)), x, y, 0..4);
            *value = 128.0 + 240.0 * grey + 120.0 * colour;
        }
        let (dx, dy) = (x as f32 - 250.0, y as f32 - 40.0 * (seed % 8) as f32);
        let lift = if dx * dx + dy * dy < 9000.0 { 40.0 } else { 0.0 };
        Rgb(rgb.map(|value| (value + lift).clamp(0.0, 255.0) as u8))
    })
}

fn octaves(seed: u32, x: u32, y: u32, range: std::ops::Range<u32>) -> f32 {
    range
        .map(|octave| {
            let cell = 256 >> octave;
            let strength = 0.62f32.powi(octave as i32);
            strength * smooth(seed ^ (octave << 20), x as f32 / cell as f32, y as f32 / cell as f32)
        })
        .sum()
}

/// Bilinear interpolation between random values at integer positions, from -0.5 to 0.5.
fn smooth(seed: u32, x: f32, y: f32) -> f32 {
    let (column, row) = (x as u32, y as u32);
    let (across, down) = (x.fract(), y.fract());
    let mix = |a: f32, b: f32, at: f32| a + (b - a) * at;
    let top = mix(noise(seed, column, row), noise(seed, column + 1, row), across);
    let bottom = mix(noise(seed, column, row + 1), noise(seed, column + 1, row + 1), across);
    mix(top, bottom, down)
}

fn noise(seed: u32, x: u32, y: u32) -> f32 {
    let mut h = seed ^ x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77);
    h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    (h ^ (h >> 15)) as f32 / u32::MAX as f32 - 0.5
}
