//! The settings in `preprocessor_config.json`: what is done to an image before the encoder sees it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::limits::MAX_CROP_SIDE;

/// The settings, with all defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PreprocessConfig {
    pub(crate) resize: Resize,
    /// Side of the result in pixels.
    pub(crate) side: u32,
    /// Pillow's number of the resampling filter, 0 to 5.
    pub(crate) resample: u8,
    rescale_factor: f64,
    mean: [f64; 3],
    std: [f64; 3],
}

/// How an image is resized before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resize {
    No,
    /// The shorter side gets this length, and the aspect ratio is kept.
    ShortestEdge(u32),
    Exact {
        width: u32,
        height: u32,
    },
}

/// The content of the file. Its other keys do not influence the pixels. A key that is null counts
/// as missing, because fast processors write nulls.
#[derive(Deserialize)]
struct File {
    image_processor_type: Option<String>,
    /// The name of the class in files of transformers before 4.27.
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<u8>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    do_pad: Option<bool>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Size {
    Side(u32),
    ShortestEdge { shortest_edge: u32 },
    Exact { height: u32, width: u32 },
}

/// Pillow's number of bicubic resampling.
const BICUBIC: u8 = 3;

/// The classes of image processors that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageProcessorClass {
    /// `CLIPImageProcessor`: resizes the shorter side, then crops the middle.
    Clip,
    /// `SiglipImageProcessor`: resizes to a square without keeping the aspect ratio.
    Siglip,
}

impl ImageProcessorClass {
    fn defaults(self) -> ClassDefaults {
        match self {
            Self::Clip => CLIP,
            Self::Siglip => SIGLIP,
        }
    }

    fn named(name: &str) -> Result<Self, String> {
        match name {
            _ if name.starts_with("CLIP") => Ok(Self::Clip),
            // It is CLIP's, unless it pads images to squares first.
            _ if name.starts_with(LLAVA) => Ok(Self::Clip),
            "SiglipImageProcessor" | "SiglipImageProcessorFast" | "SiglipImageProcessorPil" => {
                Ok(Self::Siglip)
            }
            _ => {
                Err(format!("expected a CLIPImageProcessor or SiglipImageProcessor, found {name}"))
            }
        }
    }
}

/// Start of the name of LLaVA's image processor, which CLIP's preceded.
const LLAVA: &str = "LlavaImageProcessor";

/// The settings of a class where the file has none.
struct ClassDefaults {
    size: Size,
    do_center_crop: bool,
    mean: [f64; 3],
    std: [f64; 3],
}

const SIDE: u32 = 224;

/// Defaults of `CLIPImageProcessor`: the shorter side is resized to 224, then the middle is
/// cropped.
const CLIP: ClassDefaults = ClassDefaults {
    size: Size::ShortestEdge { shortest_edge: SIDE },
    do_center_crop: true,
    mean: [0.48145466, 0.4578275, 0.40821073],
    std: [0.26862954, 0.26130258, 0.27577711],
};

/// Defaults of `SiglipImageProcessor`: resized to 224 × 224 without keeping the aspect ratio.
const SIGLIP: ClassDefaults = ClassDefaults {
    size: Size::Exact { height: SIDE, width: SIDE },
    do_center_crop: false,
    mean: [0.5; 3],
    std: [0.5; 3],
};

/// Whether a `processor_config.json` has the settings of an image processor.
pub(crate) fn has_image_processor(text: &str) -> bool {
    let json: Result<Value, _> = serde_json::from_str(text);
    json.is_ok_and(|json| json["image_processor"].is_object())
}

impl PreprocessConfig {
    /// Parses the settings; `class` is used if they do not name one.
    pub(crate) fn parse(text: &str, class: ImageProcessorClass) -> Result<Self, String> {
        let unread = |e| format!("expected the settings of an image processor: {e}");
        let json: Value = serde_json::from_str(text).map_err(unread)?;
        // transformers 5 writes one file for all processors of a model.
        let within = &json["image_processor"];
        let file = if within.is_object() { within.clone() } else { json };
        let file: File = serde_json::from_value(file).map_err(unread)?;
        let kind = file.image_processor_type.as_ref().or(file.feature_extractor_type.as_ref());
        let is_llava = kind.is_some_and(|kind| kind.starts_with(LLAVA));
        if is_llava && file.do_pad == Some(true) {
            return Err("do_pad is true, but padding images to squares is not supported".into());
        }
        let class = kind.map_or(Ok(class), |kind| ImageProcessorClass::named(kind))?.defaults();
        let do_normalize = file.do_normalize.unwrap_or(true);
        let resample = file.resample.unwrap_or(BICUBIC);
        let resize = match (file.do_resize.unwrap_or(true), file.size.unwrap_or(class.size)) {
            (false, _) => Resize::No,
            // For SigLIP a single number is both sides, for CLIP the shorter one.
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
                        "crop_size is {width}×{height}, but the encoder takes squares"
                    ));
                }
                Size::ShortestEdge { .. } => {
                    return Err("crop_size must have a height and a width".into());
                }
            }
        } else {
            match resize {
                Resize::Exact { width, height } if width == height => width,
                _ => {
                    return Err(
                        "without do_center_crop the images have different shapes; set it, or give \
                         size an equal height and width"
                            .into(),
                    );
                }
            }
        };
        if resample > 5 {
            return Err(format!(
                "resample is {resample}, but must be from 0 to 5 (Pillow's filters)"
            ));
        }
        let std = file.image_std.unwrap_or(class.std);
        if do_normalize && std.contains(&0.0) {
            return Err(format!("image_std is {std:?}, but must not be 0, since it divides"));
        }
        let config = Self {
            resize,
            side,
            resample,
            rescale_factor: match file.do_rescale {
                Some(false) => 1.0,
                _ => file.rescale_factor.unwrap_or(1.0 / 255.0),
            },
            mean: if do_normalize { file.image_mean.unwrap_or(class.mean) } else { [0.0; 3] },
            std: if do_normalize { std } else { [1.0; 3] },
        };
        config.check_sizes()?;
        Ok(config)
    }

    /// The defaults of a class for images of that side, without a file.
    ///
    /// # Errors
    /// A side that is not from 1 to 4096.
    pub(crate) fn of_class(class: ImageProcessorClass, side: u32) -> Result<Self, String> {
        Self::parse(&json!({"size": side, "crop_size": side}).to_string(), class)
    }

    /// The settings for images of `side` pixels: the size after resizing and the crop are both
    /// scaled, so that the crop keeps the same part of an image.
    ///
    /// # Errors
    /// A side that is not from 1 to 4096.
    pub(crate) fn scaled_to(&self, side: u32) -> Result<Self, String> {
        let scaled = |pixels: u32| {
            (f64::from(pixels) * f64::from(side) / f64::from(self.side)).round() as u32
        };
        let resize = match self.resize {
            Resize::No => Resize::No,
            Resize::ShortestEdge(edge) => Resize::ShortestEdge(scaled(edge)),
            Resize::Exact { width, height } => {
                Resize::Exact { width: scaled(width), height: scaled(height) }
            }
        };
        let config = Self { resize, side, ..self.clone() };
        config.check_sizes()?;
        Ok(config)
    }

    /// Checks that all sizes are possible.
    fn check_sizes(&self) -> Result<(), String> {
        let side = self.side;
        let (smallest, largest) = match self.resize {
            Resize::No => (side, side),
            Resize::ShortestEdge(edge) => (side.min(edge), side.max(edge)),
            Resize::Exact { width, height } => {
                (side.min(width).min(height), side.max(width).max(height))
            }
        };
        if smallest == 0 || largest > MAX_CROP_SIDE {
            return Err(format!(
                "size and crop_size must be from 1 to {MAX_CROP_SIDE} pixels, found {smallest} and \
                 {largest}"
            ));
        }
        Ok(())
    }

    /// The settings as `preprocessor_config.json`, with every setting written out.
    pub(crate) fn to_json(&self) -> Value {
        let Self { resize, side, resample, rescale_factor, mean, std } = self;
        let is_squeezed = *resize == Resize::Exact { width: *side, height: *side };
        let size = match resize {
            Resize::No => json!({"height": side, "width": side}),
            Resize::ShortestEdge(edge) => json!({"shortest_edge": edge}),
            Resize::Exact { width, height } => json!({"height": height, "width": width}),
        };
        let class = if is_squeezed { "SiglipImageProcessor" } else { "CLIPImageProcessor" };
        let mut tree = json!({
            "image_processor_type": class,
            "do_resize": *resize != Resize::No,
            "size": size,
            "resample": resample,
            "do_rescale": true,
            "rescale_factor": rescale_factor,
            "do_normalize": true,
            "image_mean": mean,
            "image_std": std,
            "do_convert_rgb": true,
        });
        if !is_squeezed {
            tree["do_center_crop"] = json!(true);
            tree["crop_size"] = json!({"height": side, "width": side});
        }
        tree
    }

    /// The normalized value of `level` in `channel`, rounded where the reference rounds: it scales
    /// in float64 and normalizes in float32.
    pub(crate) fn level(&self, channel: usize, level: u8) -> f32 {
        let scaled = (f64::from(level) * self.rescale_factor) as f32;
        (scaled - self.mean[channel] as f32) / self.std[channel] as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PreprocessConfig, String> {
        PreprocessConfig::parse(text, ImageProcessorClass::Clip)
    }

    #[test]
    fn sizes_may_be_numbers_or_objects() {
        let config = parse(r#"{"size": 256, "crop_size": 32}"#).unwrap();
        assert_eq!((config.resize, config.side), (Resize::ShortestEdge(256), 32));
        let config =
            parse(r#"{"size": {"height": 8, "width": 8}, "do_center_crop": false}"#).unwrap();
        assert_eq!((config.resize, config.side), (Resize::Exact { width: 8, height: 8 }, 8));
        let config = parse("{}").unwrap();
        assert_eq!((config.resize, config.side), (Resize::ShortestEdge(224), 224));
        assert_eq!(config.level(0, 255), (1.0 - 0.48145466_f32) / 0.26862954);
    }

    #[test]
    fn siglip_squeezes_and_centres_on_grey() {
        let config = parse(r#"{"image_processor_type": "SiglipImageProcessor"}"#).unwrap();
        let squeezed = Resize::Exact { width: 224, height: 224 };
        assert_eq!((config.resize, config.side), (squeezed, 224));
        assert_eq!((config.level(1, 0), config.level(1, 255)), (-1.0, 1.0));
        let config = parse(
            r#"{"image_processor_type": "SiglipImageProcessor", "resample": 2,
                "size": {"height": 256, "width": 256}}"#,
        )
        .unwrap();
        assert_eq!((config.side, config.resample), (256, 2));
    }

    #[test]
    fn null_is_left_out_and_transformers_5_has_it_within() {
        let plain = parse("{}").unwrap();
        let nulls = r#"{"image_processor_type": "CLIPImageProcessorFast", "do_resize": null,
            "size": null, "resample": null, "do_center_crop": null, "crop_size": null,
            "do_rescale": null, "rescale_factor": null, "do_normalize": null, "image_mean": null,
            "image_std": null, "device": null}"#;
        assert_eq!(parse(nulls).unwrap(), plain);
        let within = r#"{"image_processor": {"image_processor_type": "SiglipImageProcessor",
            "size": {"height": 64, "width": 64}}, "processor_class": "SiglipProcessor"}"#;
        let config = parse(within).unwrap();
        assert_eq!(config, PreprocessConfig::of_class(ImageProcessorClass::Siglip, 64).unwrap());
    }

    #[test]
    fn settings_that_are_written_are_read_again() {
        for settings in [
            r#"{"size": 256, "crop_size": 224}"#,
            r#"{"size": {"height": 64, "width": 48}, "crop_size": 32, "resample": 2}"#,
            r#"{"do_resize": false, "do_rescale": false, "do_normalize": false}"#,
            r#"{"image_processor_type": "SiglipImageProcessor", "image_mean": [0.1, 0.2, 0.3]}"#,
        ] {
            let config = parse(settings).unwrap();
            let again = parse(&config.to_json().to_string()).unwrap();
            assert_eq!(again, config, "{settings}");
        }
        for (class, side) in [(ImageProcessorClass::Clip, 336), (ImageProcessorClass::Siglip, 384)]
        {
            let config = PreprocessConfig::of_class(class, side).unwrap();
            assert_eq!(parse(&config.to_json().to_string()).unwrap(), config);
            assert_eq!(config.side, side);
        }
    }

    #[test]
    fn another_size_scales_resizing_and_crop_alike() {
        let clip = parse(r#"{"size": 256, "crop_size": 224}"#).unwrap().scaled_to(336).unwrap();
        assert_eq!((clip.resize, clip.side), (Resize::ShortestEdge(384), 336));
        let rounded = parse(r#"{"size": 256, "crop_size": 224}"#).unwrap().scaled_to(240).unwrap();
        assert_eq!((rounded.resize, rounded.side), (Resize::ShortestEdge(274), 240));
        let siglip = PreprocessConfig::of_class(ImageProcessorClass::Siglip, 224).unwrap();
        let larger = PreprocessConfig::of_class(ImageProcessorClass::Siglip, 384).unwrap();
        assert_eq!(siglip.scaled_to(384).unwrap(), larger);
        assert!(siglip.scaled_to(4097).unwrap_err().contains("to 4096"));
    }

    #[test]
    fn steps_that_are_off_change_nothing() {
        let config =
            parse(r#"{"do_resize": false, "do_rescale": false, "do_normalize": false}"#).unwrap();
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
            (r#"{"image_processor_type": "LlavaImageProcessor", "do_pad": true}"#, "do_pad"),
            (r#"{"image_processor_type": "Siglip2ImageProcessor"}"#, "found Siglip2"),
            ("[]", "expected the settings"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
