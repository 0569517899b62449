//! `preprocessor_config.json`: what is done to a picture before the encoder sees it.

use serde::Deserialize;

/// The settings, resolved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PreprocessConfig {
    pub(crate) resize: Resize,
    /// Side of the result, in pixels.
    pub(crate) side: u32,
    /// Pillow's number of the resampling filter, 0 to 5.
    pub(crate) resample: u8,
    rescale_factor: f64,
    mean: [f64; 3],
    std: [f64; 3],
}

/// How a picture is brought near its final size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resize {
    No,
    /// The shorter side becomes this long, the other follows.
    ShortestEdge(u32),
    Exact {
        width: u32,
        height: u32,
    },
}

/// The file's form. Other keys, of which there are many, say nothing about pixels.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    image_processor_type: Option<String>,
    #[serde(default = "yes")]
    do_resize: bool,
    size: Option<Size>,
    #[serde(default = "bicubic")]
    resample: u8,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "one_255th")]
    rescale_factor: f64,
    #[serde(default = "yes")]
    do_normalize: bool,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Size {
    Side(u32),
    ShortestEdge { shortest_edge: u32 },
    Exact { height: u32, width: u32 },
}

fn yes() -> bool {
    true
}

fn bicubic() -> u8 {
    3
}

fn one_255th() -> f64 {
    1.0 / 255.0
}

/// What a processor takes where the file says nothing.
struct ClassDefaults {
    size: Size,
    do_center_crop: bool,
    mean: [f64; 3],
    std: [f64; 3],
}

const SIDE: u32 = 224;

/// `CLIPImageProcessor`: the shorter side to 224, then the middle.
const CLIP: ClassDefaults = ClassDefaults {
    size: Size::ShortestEdge { shortest_edge: SIDE },
    do_center_crop: true,
    mean: [0.48145466, 0.4578275, 0.40821073],
    std: [0.26862954, 0.26130258, 0.27577711],
};

/// `SiglipImageProcessor`: squeezed to 224 × 224, whatever the shape.
const SIGLIP: ClassDefaults = ClassDefaults {
    size: Size::Exact { height: SIDE, width: SIDE },
    do_center_crop: false,
    mean: [0.5; 3],
    std: [0.5; 3],
};

/// More than any encoder takes; a mistyped number shall not eat the memory.
const MAX_SIDE: u32 = 4096;

impl PreprocessConfig {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text)
            .map_err(|e| format!("not the settings of an image processor: {e}"))?;
        let class = match file.image_processor_type.as_deref() {
            None => CLIP,
            Some(kind) if kind.starts_with("CLIP") => CLIP,
            Some("SiglipImageProcessor" | "SiglipImageProcessorFast") => SIGLIP,
            Some(kind) => {
                return Err(format!(
                    "expected a CLIPImageProcessor or SiglipImageProcessor, found {kind}"
                ));
            }
        };
        let resize = match (file.do_resize, file.size.unwrap_or(class.size)) {
            (false, _) => Resize::No,
            // A SigLIP's number is both sides, a CLIP's the shorter one.
            (true, Size::Side(side)) if !class.do_center_crop => {
                Resize::Exact { width: side, height: side }
            }
            (true, Size::Side(edge) | Size::ShortestEdge { shortest_edge: edge }) => {
                Resize::ShortestEdge(edge)
            }
            (true, Size::Exact { height, width }) => Resize::Exact { width, height },
        };
        let side = if file.do_center_crop.unwrap_or(class.do_center_crop) {
            match file.crop_size.unwrap_or(Size::Side(SIDE)) {
                Size::Side(side) => side,
                Size::Exact { height, width } if height == width => height,
                Size::Exact { height, width } => {
                    return Err(format!(
                        "crop_size is {width}×{height}; the encoder takes squares"
                    ));
                }
                Size::ShortestEdge { .. } => {
                    return Err("crop_size should have a height and a width".into());
                }
            }
        } else {
            match resize {
                Resize::Exact { width, height } if width == height => width,
                _ => {
                    return Err(
                        "without do_center_crop pictures keep different shapes; set it, or \
                                give size a height and a width that are equal"
                            .into(),
                    );
                }
            }
        };
        let largest = match resize {
            Resize::No => side,
            Resize::ShortestEdge(edge) => side.max(edge),
            Resize::Exact { width, height } => side.max(width).max(height),
        };
        let smallest = match resize {
            Resize::No => side,
            Resize::ShortestEdge(edge) => side.min(edge),
            Resize::Exact { width, height } => side.min(width).min(height),
        };
        if smallest == 0 || largest > MAX_SIDE {
            return Err(format!(
                "size and crop_size must be from 1 to {MAX_SIDE} pixels, found {smallest} and \
                 {largest}"
            ));
        }
        if file.resample > 5 {
            return Err(format!("resample is {}; known are Pillow's 0 to 5", file.resample));
        }
        let std = file.image_std.unwrap_or(class.std);
        if file.do_normalize && std.contains(&0.0) {
            return Err(format!("image_std is {std:?}; it divides and must not be 0"));
        }
        Ok(Self {
            resize,
            side,
            resample: file.resample,
            rescale_factor: if file.do_rescale { file.rescale_factor } else { 1.0 },
            mean: if file.do_normalize { file.image_mean.unwrap_or(class.mean) } else { [0.0; 3] },
            std: if file.do_normalize { std } else { [1.0; 3] },
        })
    }

    /// What `level` becomes in `channel`, rounded where the reference rounds: it scales in float64
    /// and normalizes in float32.
    pub(crate) fn level(&self, channel: usize, level: u8) -> f32 {
        let scaled = (f64::from(level) * self.rescale_factor) as f32;
        (scaled - self.mean[channel] as f32) / self.std[channel] as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_be_numbers_or_objects() {
        let config = PreprocessConfig::parse(r#"{"size": 256, "crop_size": 32}"#).unwrap();
        assert_eq!((config.resize, config.side), (Resize::ShortestEdge(256), 32));
        let config = PreprocessConfig::parse(
            r#"{"size": {"height": 8, "width": 8}, "do_center_crop": false}"#,
        )
        .unwrap();
        assert_eq!((config.resize, config.side), (Resize::Exact { width: 8, height: 8 }, 8));
        let config = PreprocessConfig::parse("{}").unwrap();
        assert_eq!((config.resize, config.side), (Resize::ShortestEdge(224), 224));
        assert_eq!(config.level(0, 255), (1.0 - 0.48145466_f32) / 0.26862954);
    }

    #[test]
    fn siglip_squeezes_and_centres_on_grey() {
        let config =
            PreprocessConfig::parse(r#"{"image_processor_type": "SiglipImageProcessor"}"#).unwrap();
        let squeezed = Resize::Exact { width: 224, height: 224 };
        assert_eq!((config.resize, config.side), (squeezed, 224));
        assert_eq!((config.level(1, 0), config.level(1, 255)), (-1.0, 1.0));
        let config = PreprocessConfig::parse(
            r#"{"image_processor_type": "SiglipImageProcessor", "resample": 2,
                "size": {"height": 256, "width": 256}}"#,
        )
        .unwrap();
        assert_eq!((config.side, config.resample), (256, 2));
    }

    #[test]
    fn steps_that_are_off_change_nothing() {
        let config = PreprocessConfig::parse(
            r#"{"do_resize": false, "do_rescale": false, "do_normalize": false}"#,
        )
        .unwrap();
        assert_eq!(config.resize, Resize::No);
        assert_eq!(config.level(2, 200), 200.0);
    }

    #[test]
    fn settings_without_one_square_size_are_refused() {
        for (text, expected) in [
            (r#"{"crop_size": {"height": 2, "width": 3}}"#, "squares"),
            (r#"{"do_center_crop": false}"#, "do_center_crop"),
            (r#"{"crop_size": 0}"#, "from 1"),
            (r#"{"crop_size": 100000}"#, "to 4096"),
            (r#"{"resample": 9}"#, "resample"),
            (r#"{"image_std": [1, 0, 1]}"#, "image_std"),
            (r#"{"image_processor_type": "ViTImageProcessor"}"#, "found ViT"),
            (r#"{"image_processor_type": "Siglip2ImageProcessor"}"#, "found Siglip2"),
            ("[]", "not the settings"),
        ] {
            let error = PreprocessConfig::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
