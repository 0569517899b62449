//! Tests of vision encoders at another resolution than they were trained with, and of the towers in
//! folders of open_clip, against the features of transformers, open_clip and timm. The folders are
//! made by `tests/golden/encoders.py`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use vlm_infer::{build_encoder, image_processor, vision_config, write_preprocessor};
use vlm_model::VisionConfig;
use vlm_model::params::ParamStore;
use vlm_model::part_files::{open_vision_encoder, open_vision_encoder_as};
use vlm_model::vision::VisionEncoder;
use vlm_model::weights::{Format, save};

/// Tolerance of the features in float32. The largest difference that was observed is 2.6e-6, with
/// features up to 8.
const TOLERANCE: f64 = 1e-5;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/encoders").join(name)
}

fn expected(name: &str) -> HashMap<String, Tensor> {
    let tensors = Tensor::read_safetensors(golden(name).join("expected.safetensors")).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, tensor.to_kind(Kind::Float))).collect()
}

/// Compares the features of `encoder` with those of the other program.
fn assert_features(name: &str, encoder: &VisionEncoder, pixels: &Tensor, features: &Tensor) {
    let found = tch::no_grad(|| encoder.patch_features(pixels));
    assert_eq!(found.size(), features.size(), "{name}");
    let difference = f64::try_from((found - features).abs().max()).unwrap();
    println!("{name}: features within {difference:.1e}");
    assert!(difference <= TOLERANCE, "{name}: {difference:e}");
}

#[test]
fn features_at_other_resolutions_are_those_of_transformers() {
    for name in ["resolution/clip", "resolution/siglip"] {
        let golden_numbers = expected(name);
        for side in [24, 48] {
            let (encoder, config) = build_encoder(&golden(name), Some(side), Device::Cpu).unwrap();
            assert_eq!(config.image_size, side);
            let of_side = |what: &str| &golden_numbers[&format!("{what}_{side}")];
            let what = format!("{name} at {side}");
            assert_features(&what, &encoder, of_side("pixels"), of_side("features"));
        }
    }
}

#[test]
fn an_encoder_that_is_written_at_another_resolution_is_the_same_when_it_is_read() {
    let name = "resolution/clip";
    let folder = tempfile::tempdir().unwrap();
    let config = vision_config(&golden(name), Some(48)).unwrap();
    let tensors = open_vision_encoder_as(&golden(name), &config).unwrap().all().unwrap();
    save(&folder.path().join("model.safetensors"), &tensors, Format::Safetensors).unwrap();
    fs::write(folder.path().join("config.json"), config.to_json().to_string()).unwrap();
    write_preprocessor(&golden(name), &config, folder.path()).unwrap();
    let (encoder, read) = build_encoder(folder.path(), None, Device::Cpu).unwrap();
    assert_eq!(read, config);
    let numbers = expected(name);
    assert_features(name, &encoder, &numbers["pixels_48"], &numbers["features_48"]);
    let processor = image_processor(folder.path(), &read).unwrap();
    assert_eq!(processor.settings()["size"], json!({"shortest_edge": 48}));
    assert_eq!(processor.settings()["crop_size"], json!({"height": 48, "width": 48}));
}

#[test]
fn an_image_size_that_cuts_patches_is_refused_with_the_nearest() {
    let error = vision_config(&golden("resolution/clip"), Some(50)).unwrap_err().to_string();
    assert!(error.contains("`image_size` is 50") && error.contains("48 and 56"), "{error}");
}

#[test]
fn towers_of_open_clip_give_its_features() {
    for (name, hidden_act) in [("clip", "gelu"), ("quick_gelu", "quick_gelu")] {
        let name = format!("open_clip/{name}");
        let (encoder, config) = build_encoder(&golden(&name), None, Device::Cpu).unwrap();
        assert_eq!((config.hidden_act.as_str(), config.num_attention_heads), (hidden_act, 3));
        let numbers = expected(&name);
        assert_features(&name, &encoder, &numbers["pixels"], &numbers["features"]);
    }
}

#[test]
fn siglip_of_timm_in_open_clip_gives_its_features() {
    let name = "open_clip/timm";
    let published = vision_config(&golden(name), None).unwrap();
    assert_eq!((published.hidden_size, published.image_size), (768, 32));
    // The tiny tower has the names and the arithmetic of the published one.
    let config = VisionConfig {
        hidden_size: 24,
        intermediate_size: 36,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        patch_size: 8,
        ..published
    };
    let params = ParamStore::new(Device::Cpu);
    let encoder = VisionEncoder::new(&params.root(), &config);
    let weights = open_vision_encoder(&golden(name)).unwrap();
    let report = weights.load_into(&params.named(), |_| false).unwrap();
    let is_pooling = |name: &String| name.starts_with("vision_model.head.");
    assert!(report.surplus.iter().all(is_pooling), "{:?}", report.surplus);
    let numbers = expected(name);
    assert_features(name, &encoder, &numbers["pixels"], &numbers["features"]);
}

#[test]
fn the_preprocessing_of_open_clip_is_read_and_scaled() {
    let settings = |name: &str, size: Option<i64>| {
        let folder = golden(name);
        let config = vision_config(&folder, size).unwrap();
        image_processor(&folder, &config).unwrap().settings()
    };
    let clip = settings("open_clip/clip", None);
    assert_eq!((&clip["size"], &clip["resample"]), (&json!({"shortest_edge": 32}), &json!(3)));
    let squashed = settings("open_clip/quick_gelu", Some(48));
    assert_eq!(squashed["size"], json!({"height": 48, "width": 48}));
    assert_eq!((&squashed["resample"], &squashed["image_mean"][0]), (&json!(2), &json!(0.5)));
    assert_eq!(squashed["do_center_crop"], Value::Null);
}

#[test]
fn weights_in_hugging_faces_format_have_precedence_over_open_clips() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, file: &str| {
        fs::copy(golden(from).join(file), folder.path().join(file)).unwrap();
    };
    copy("open_clip/clip", "open_clip_config.json");
    copy("open_clip/clip", "open_clip_model.safetensors");
    let act = || vision_config(folder.path(), None).unwrap().hidden_act;
    assert_eq!(act(), "gelu");
    copy("resolution/clip", "config.json");
    assert_eq!(act(), "gelu", "the weights are still those of open_clip");
    copy("resolution/clip", "model.safetensors");
    assert_eq!(act(), "quick_gelu");
    build_encoder(folder.path(), None, Device::Cpu).unwrap();
}
