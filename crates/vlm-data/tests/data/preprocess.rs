//! Pixels compared with those of `CLIPImageProcessor` and `SiglipImageProcessor` with Pillow.

use std::collections::BTreeMap;

use serde::Deserialize;
use vlm_data::ImageProcessor;

use crate::golden;

#[derive(Deserialize)]
struct Cases {
    images: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    error: Option<String>,
    /// Of the normalized values.
    #[serde(default)]
    sum: f64,
    #[serde(default)]
    mean_abs: f64,
}

/// Levels between our crop and the golden one: mean and largest.
struct Difference {
    mean: f64,
    max: u8,
}

fn processor() -> ImageProcessor {
    ImageProcessor::from_file(&golden("vision_tower/preprocessor_config.json")).unwrap()
}

fn image(name: &str) -> Vec<u8> {
    std::fs::read(golden("preprocess/images").join(name)).unwrap()
}

fn compare(name: &str) -> Difference {
    let stem = name.split('.').next().unwrap();
    compare_by(&processor(), name, &format!("preprocess/{stem}.crop.png"))
}

fn compare_by(processor: &ImageProcessor, name: &str, expected: &str) -> Difference {
    let ours = processor.crop_u8(&image(name)).unwrap();
    let expected = image::open(golden(expected)).unwrap().into_rgb8().into_raw();
    assert_eq!(ours.len(), expected.len(), "{name}");
    let levels: Vec<u8> = ours.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).collect();
    Difference {
        mean: levels.iter().map(|&d| f64::from(d)).sum::<f64>() / levels.len() as f64,
        max: levels.into_iter().max().unwrap(),
    }
}

fn cases() -> BTreeMap<String, Case> {
    let text = std::fs::read_to_string(golden("preprocess/cases.json")).unwrap();
    serde_json::from_str::<Cases>(&text).unwrap().images
}

/// Every pixel is the reference's, except in a JPEG, where decoders differ in the upsampling of colour:
/// on photographs up to 6 levels in single pixels.
#[test]
fn crops_are_the_references_within_the_decoders_tolerance() {
    for (name, case) in cases() {
        // In height3.png the reference takes the height for the channels.
        if case.error.is_some() || name == "height3.png" {
            continue;
        }
        let Difference { mean, max } = compare(&name);
        println!("{name}: mean {mean:.4}, max {max}");
        let (max_mean, max_max) = if name.ends_with(".jpg") { (0.5, 8) } else { (0.0, 0) };
        assert!(mean <= max_mean && max <= max_max, "{name}: mean {mean}, max {max}");
    }
}

#[test]
fn normalized_values_are_the_references() {
    let processor = processor();
    for (name, case) in cases() {
        if case.error.is_some() || name == "height3.png" || name.ends_with(".jpg") {
            continue;
        }
        let pixels = processor.preprocess(&image(&name)).unwrap();
        assert_eq!(pixels.len(), 3 * 224 * 224);
        let count = pixels.len() as f64;
        let mean: f64 = pixels.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let mean_abs = pixels.iter().map(|&v| f64::from(v.abs())).sum::<f64>() / count;
        assert!((mean - case.sum / count).abs() < 1e-6, "{name}: mean {mean}");
        assert!((mean_abs - case.mean_abs).abs() < 1e-6, "{name}: mean of |x| {mean_abs}");
    }
}

#[test]
fn siglips_squeezed_pictures_are_the_references() {
    let file = golden("siglip/preprocessor_config.json");
    let processor = ImageProcessor::from_file(&file).unwrap();
    let text = std::fs::read_to_string(golden("siglip/processor.json")).unwrap();
    let samples: BTreeMap<String, Vec<f32>> = serde_json::from_str(&text).unwrap();
    for (name, expected) in samples {
        let squeezed = format!("siglip/{}", name.replace(".png", ".squeezed.png"));
        let Difference { mean, max } = compare_by(&processor, &name, &squeezed);
        println!("{name}: mean {mean:.4}, max {max}");
        assert!(max == 0, "{name}: mean {mean}, max {max}");
        // The processor's own values at every 37th row and 41st column.
        let pixels = processor.preprocess(&image(&name)).unwrap();
        let at = |k: usize| pixels[k / 42 * 224 * 224 + k % 42 / 6 * 37 * 224 + k % 6 * 41];
        for (k, &value) in expected.iter().enumerate() {
            assert!((at(k) - value).abs() <= 1e-6, "{name}: {} {value}", at(k));
        }
    }
}

#[test]
fn normalized_values_follow_the_crop_channel_by_channel() {
    let processor = processor();
    let bytes = image("rgba.png");
    let (crop, pixels) =
        (processor.crop_u8(&bytes).unwrap(), processor.preprocess(&bytes).unwrap());
    let (mean, std) =
        ([0.48145466_f64, 0.4578275, 0.40821073], [0.26862954_f64, 0.26130258, 0.27577711]);
    for at in (0..224 * 224).step_by(97) {
        for channel in 0..3 {
            let level = f64::from(crop[at * 3 + channel]) / 255.0;
            let expected = (level - mean[channel]) / std[channel];
            let found = f64::from(pixels[channel * 224 * 224 + at]);
            // Ours is rounded to single precision three times.
            assert!((found - expected).abs() <= 1e-6, "{channel} at {at}: {found}, {expected}");
        }
    }
}

#[test]
fn pictures_that_the_reference_cannot_take_give_sane_crops() {
    let processor = processor();
    let pixel = image::open(golden("preprocess/images/one_by_one.png")).unwrap().into_rgb8();
    let crop = processor.crop_u8(&image("one_by_one.png")).unwrap();
    assert!(crop.chunks_exact(3).all(|rgb| rgb == pixel.as_raw().as_slice()));

    // One row stretched: every row of the crop is the same.
    let crop = processor.crop_u8(&image("height1.png")).unwrap();
    assert!(crop.chunks_exact(224 * 3).all(|row| row == &crop[..224 * 3]));
    assert_eq!(processor.crop_u8(&image("height3.png")).unwrap().len(), 224 * 224 * 3);
}

#[test]
fn a_very_long_picture_costs_no_more_than_its_crop() {
    let line = image::RgbImage::from_fn(16_384, 1, |x, _| image::Rgb([(x % 251) as u8; 3]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    line.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    // Resized whole it would be 224 × 3.7 million pixels.
    assert_eq!(processor().crop_u8(bytes.get_ref()).unwrap().len(), 224 * 224 * 3);
}

#[test]
fn a_resized_image_smaller_than_the_crop_is_padded_with_zeros_around_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preprocessor_config.json");
    std::fs::write(&path, r#"{"size": 2, "crop_size": 5}"#).unwrap();
    let processor = ImageProcessor::from_file(&path).unwrap();
    let mut bytes = std::io::Cursor::new(Vec::new());
    let white = image::RgbImage::from_pixel(2, 2, image::Rgb([255; 3]));
    white.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let crop = processor.crop_u8(bytes.get_ref()).unwrap();
    let lit: Vec<_> = (0..25).filter(|at| crop[at * 3] == 255).collect();
    // numpy: transformers.image_transforms.center_crop(np.full((2, 2, 3), 255), (5, 5))
    assert_eq!(lit, [12, 13, 17, 18]);
}
