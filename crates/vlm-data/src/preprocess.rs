//! Makes the vision encoder's input of images, as Hugging Face's `CLIPImageProcessor` and
//! `SiglipImageProcessor` do.

use std::path::{Path, PathBuf};

use crate::decode::{ImageLimits, RgbImage};
use crate::error::DataError;
use crate::preprocess_config::{
    ImageProcessorClass, PreprocessConfig, Resize, has_image_processor,
};
use crate::reject::Reject;
use crate::resample::{Filter, Part, resample};

const CHANNELS: usize = 3;

/// Makes an encoder's input of encoded images. S is the side of that input in pixels.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    config: PreprocessConfig,
    limits: ImageLimits,
    /// Normalized value of each of the 256 levels, by channel.
    levels: Box<[[f32; 256]; CHANNELS]>,
    hash: String,
}

/// How one side of the result is cut from the resized image: `length` pixels from `offset` on,
/// placed in the result at `pad`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    resized: u64,
    offset: u64,
    length: u32,
    pad: u32,
}

fn read(path: &Path) -> Result<String, DataError> {
    std::fs::read_to_string(path).map_err(DataError::io(path, "read the preprocessing settings"))
}

impl ImageProcessor {
    /// Reads a `preprocessor_config.json` or `processor_config.json`.
    ///
    /// # Errors
    /// A file that cannot be read, or settings that do not give squares of one size.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        Self::parse(path, &read(path)?, ImageProcessorClass::Clip)
    }

    /// Reads the settings in a vision encoder's folder: `preprocessor_config.json`, or
    /// `processor_config.json`, the name in transformers 5. If neither exists, the defaults of
    /// `class` for images of `image_size` are used. Returns the path of the file that was read.
    ///
    /// # Errors
    /// As for [`Self::from_file`].
    pub fn from_folder(
        folder: &Path,
        class: ImageProcessorClass,
        image_size: u32,
    ) -> Result<(Self, Option<PathBuf>), DataError> {
        let path = folder.join("preprocessor_config.json");
        if path.is_file() {
            return Ok((Self::parse(&path, &read(&path)?, class)?, Some(path)));
        }
        let path = folder.join("processor_config.json");
        if path.is_file() {
            let text = read(&path)?;
            // In transformers 4 this file holds other settings.
            if has_image_processor(&text) {
                return Ok((Self::parse(&path, &text, class)?, Some(path)));
            }
        }
        let config = PreprocessConfig::of_class(class, image_size)
            .map_err(|problem| DataError::content(folder, problem))?;
        Ok((Self::new(config), None))
    }

    /// The defaults of `class` for images of `image_size`, without a file.
    ///
    /// # Errors
    /// A size that is not from 1 to 4096 pixels.
    pub fn of_class(class: ImageProcessorClass, image_size: u32) -> Result<Self, DataError> {
        PreprocessConfig::of_class(class, image_size).map(Self::new).map_err(DataError::Settings)
    }

    /// Reads `settings` in the form of `preprocessor_config.json`; `class` is used if they do not
    /// name one. `path` is the file or folder that they come from, for messages.
    ///
    /// # Errors
    /// Settings that do not give squares of one size.
    pub fn from_settings(
        path: &Path,
        settings: &serde_json::Value,
        class: ImageProcessorClass,
    ) -> Result<Self, DataError> {
        Self::parse(path, &settings.to_string(), class)
    }

    /// This preprocessing for images of `image_size` instead of its own size S: the size to which
    /// images are resized and that of the crop are both multiplied by `image_size` / S, and
    /// rounded.
    ///
    /// # Errors
    /// A size that is not from 1 to 4096 pixels.
    pub fn scaled_to(&self, image_size: u32) -> Result<Self, DataError> {
        self.config.scaled_to(image_size).map(Self::new).map_err(DataError::Settings)
    }

    /// This preprocessing with other limits on the size of images.
    #[must_use]
    pub fn with_limits(mut self, limits: ImageLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The settings as `preprocessor_config.json`, with every setting written out.
    pub fn settings(&self) -> serde_json::Value {
        self.config.to_json()
    }

    /// Parses settings; `class` is used if they do not name one.
    fn parse(path: &Path, text: &str, class: ImageProcessorClass) -> Result<Self, DataError> {
        let config = PreprocessConfig::parse(text, class);
        config.map(Self::new).map_err(|problem| DataError::content(path, problem))
    }

    fn new(config: PreprocessConfig) -> Self {
        let levels = Box::new(std::array::from_fn(|channel| {
            std::array::from_fn(|level| config.level(channel, level as u8))
        }));
        let hash = blake3::hash(format!("{config:?}").as_bytes()).to_hex().to_string();
        Self { config, limits: ImageLimits::default(), levels, hash }
    }

    /// S in pixels.
    pub fn image_size(&self) -> usize {
        self.config.side as usize
    }

    /// A hash of the settings: the same hash means the same pixels.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Encoded image `bytes` → `[3, S, S]`, normalized.
    ///
    /// # Errors
    /// [`UnreadableImage`](crate::RejectReason::UnreadableImage),
    /// [`ImageTooLarge`](crate::RejectReason::ImageTooLarge).
    pub fn preprocess(&self, bytes: &[u8]) -> Result<Vec<f32>, Reject> {
        Ok(self.normalize(&self.crop_u8(bytes)?))
    }

    /// `[N, S, S, 3]`, as [`Self::crop_u8`] makes them → `[N, 3, S, S]`, normalized.
    pub fn normalize(&self, crops: &[u8]) -> Vec<f32> {
        let mut pixels = Vec::with_capacity(crops.len());
        for crop in crops.chunks_exact(self.image_size() * self.image_size() * CHANNELS) {
            for (channel, levels) in self.levels.iter().enumerate() {
                let values = crop.chunks_exact(CHANNELS).map(|rgb| usize::from(rgb[channel]));
                pixels.extend(values.map(|level| levels[level]));
            }
        }
        pixels
    }

    /// Normalized value of each of the 256 levels, by channel, for normalization on another device.
    pub fn levels(&self) -> &[[f32; 256]; CHANNELS] {
        &self.levels
    }

    /// The resized and cropped image before normalization: `[S, S, 3]`.
    ///
    /// # Errors
    /// As for [`Self::preprocess`].
    pub fn crop_u8(&self, bytes: &[u8]) -> Result<Vec<u8>, Reject> {
        let image = RgbImage::decode(bytes, &self.limits)?;
        let (width, height) = (u64::from(image.width), u64::from(image.height));
        let (resized_width, resized_height) = match self.config.resize {
            Resize::No => (width, height),
            Resize::Exact { width, height } => (u64::from(width), u64::from(height)),
            Resize::ShortestEdge(edge) => shortest_edge(width, height, u64::from(edge)),
        };
        let span = |resized| Span::centre(resized, self.config.side);
        Ok(self.resample(image, span(resized_width), span(resized_height)))
    }

    /// Computes only the pixels that the crop keeps: resizing a whole image of 1 × 16384 would take
    /// gigabytes.
    fn resample(&self, image: RgbImage, x: Span, y: Span) -> Vec<u8> {
        let filter = Filter::from_number(self.config.resample).unwrap_or(Filter::Bicubic);
        let (across, down) = (x.of(image.width), y.of(image.height));
        let crop = resample(&image.pixels, across, down, filter);
        let side = self.image_size();
        if (x.length, y.length) == (self.config.side, self.config.side) {
            return crop;
        }
        let mut padded = vec![0; side * side * CHANNELS];
        for (row, line) in crop.chunks_exact(x.length as usize * CHANNELS).enumerate() {
            let at = ((y.pad as usize + row) * side + x.pad as usize) * CHANNELS;
            padded[at..at + line.len()].copy_from_slice(line);
        }
        padded
    }
}

/// Width and height with the shorter side at `edge` and the longer one rounded down, as in the
/// reference's `get_resize_output_image_size`.
fn shortest_edge(width: u64, height: u64, edge: u64) -> (u64, u64) {
    let (short, long) = (width.min(height), width.max(height));
    let long = edge * long / short;
    if width <= height { (edge, long) } else { (long, edge) }
}

impl Span {
    /// The middle `side` pixels; if there are fewer, all of them in the middle of zeros. The offset
    /// is rounded down, the padding before the image up.
    fn centre(resized: u64, side: u32) -> Self {
        match u32::try_from(resized) {
            Ok(length) if length < side => {
                Self { resized, offset: 0, length, pad: (side - length).div_ceil(2) }
            }
            _ => Self { resized, offset: (resized - u64::from(side)) / 2, length: side, pad: 0 },
        }
    }

    /// This span of an image with `source` pixels.
    fn of(self, source: u32) -> Part {
        let Self { resized, offset, length, .. } = self;
        Part { source: source as usize, resized, start: offset, length: length as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_side_is_rounded_down_and_the_crop_offset_too() {
        assert_eq!(shortest_edge(451, 225, 224), (448, 224));
        assert_eq!(shortest_edge(30, 900, 224), (224, 6720));
        assert_eq!(shortest_edge(1, 1, 224), (224, 224));
        let span = |resized| {
            let Span { offset, length, pad, .. } = Span::centre(resized, 224);
            (offset, length, pad)
        };
        assert_eq!(span(449), (112, 224, 0));
        assert_eq!(span(224), (0, 224, 0));
        assert_eq!(span(201), (0, 201, 12));
    }
}
