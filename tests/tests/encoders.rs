//! Training with images of another size than the encoder was trained with, and with encoders of
//! open_clip: the run is continued, evaluated, exported and trained further.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Ended, Trial, golden, program, vlm};
use crate::whole_models::loss;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Checks that the exported model `folder` has the loss of the run `out`, up to `tolerance`.
fn assert_same_loss(trial: &Trial, out: &Path, folder: &Path, tolerance: f64) {
    let (run, exported) = (loss(trial, out), loss(trial, folder));
    assert!((run - exported).abs() < tolerance, "{}: {run} and {exported}", folder.display());
}

fn caption(trial: &Trial, model: &Path) {
    let image = trial.path("images/3.png");
    let flags = ["generate", "--model", text(model), "--image", text(&image)];
    let more = ["--prompt", "What is it?", "--max-new-tokens", "4", "--device", "cpu"];
    vlm(&[&flags[..], &more].concat()).assert_success();
}

#[test]
fn a_run_at_another_image_size_is_continued_exported_and_trained_further() {
    let trial = Trial::new();
    let (out, encoder) = (trial.path("out"), golden("encoders/resolution/clip"));
    let vision = ["--vision", text(&encoder)];
    let larger = [&vision[..], &["--image-size", "48"]].concat();
    let refused = trial.pretrain(&[&vision[..], &["--image-size", "50"]].concat());
    refused.assert_error(2, &["--image-size", "48 and 56"]);

    trial.pretrain(&[&larger[..], &["--max-steps", "1"]].concat()).assert_success();
    let resume = ["--resume", "auto"];
    let other = trial.pretrain(&[&vision[..], &resume].concat());
    other.assert_error(2, &["vision.image_size was 48 and is now 32", "--image-size"]);
    trial.pretrain(&[&larger[..], &resume].concat()).assert_success();
    assert_eq!(trial.metrics().len(), 2);
    let config = read_json(&out.join("config.json"));
    assert_eq!(
        (&config["vision"]["image_size"], &config["run"]["model"]["image_size"]),
        (&json!(48), &json!(48))
    );
    assert_eq!(config["projector"]["tokens_per_image"], 36);
    caption(&trial, &out);

    let exported = trial.path("exported");
    vlm(&["convert", text(&out), "--export-hf", text(&exported)]).assert_success();
    assert_eq!(read_json(&exported.join("vision/config.json"))["image_size"], 48);
    for folder in ["", "vision"] {
        let settings = read_json(&exported.join(folder).join("preprocessor_config.json"));
        assert_eq!(settings["crop_size"], json!({"height": 48, "width": 48}));
    }
    assert_same_loss(&trial, &out, &exported, 1e-5);
    let llava = trial.path("llava");
    vlm(&["convert", text(&out), text(&llava), "--to", "llava"]).assert_success();
    assert_eq!(read_json(&llava.join("config.json"))["vision_config"]["image_size"], 48);
    // The vocabulary of the container has one token more, for images: with random weights the loss
    // grows by about one in the number of tokens.
    assert_same_loss(&trial, &out, &llava, 3e-3);

    // The second stage and a training that starts from the run keep the size of the images.
    for start in [["sft", "--lm"], ["pretrain", "--init-from"]] {
        let next = trial.path(start[0]);
        let mut command = program();
        command.args(start).arg(&out).args(["--device", "cpu", "--max-steps", "1"]);
        command.arg("--data-path").arg(trial.path("rows.jsonl"));
        command.arg("--images-path").arg(trial.path("images")).arg("--out-dir").arg(&next);
        Ended::of(&command.output().unwrap()).assert_success();
        assert_eq!(read_json(&next.join("config.json"))["vision"]["image_size"], 48, "{start:?}");
    }
}

#[test]
fn a_trained_encoder_is_written_with_the_size_of_its_images() {
    let trial = Trial::new();
    let encoder = golden("encoders/resolution/siglip");
    let flags = ["--vision", text(&encoder), "--image-size", "24", "--train-vision"];
    trial.pretrain(&flags).assert_success();
    let out = trial.path("out");
    assert_eq!(read_json(&out.join("vision/config.json"))["image_size"], 24);
    caption(&trial, &out);
}

/// Trains with an encoder, once with its features from a cache, and compares the losses.
fn assert_cached_features_equal(trial: &Trial, encoder: &[&str]) {
    let losses = |more: &[&str]| {
        trial.pretrain(more).assert_success();
        let found = trial.metrics().iter().map(|line| line["loss"].as_f64().unwrap()).collect();
        fs::remove_dir_all(trial.path("out")).unwrap();
        found
    };
    let (rows, images) = (trial.path("rows.jsonl"), trial.path("images"));
    let features = trial.path("features");
    let data = ["--data-path", text(&rows), "--images-path", text(&images)];
    let to = ["--output", text(&features), "--device", "cpu"];
    vlm(&[&["cache-features"], &data[..], encoder, &to].concat()).assert_success();
    let direct: Vec<f64> = losses(encoder);
    let cached: Vec<f64> = losses(&[encoder, &["--features", text(&features)]].concat());
    assert_eq!(direct, cached);
}

#[test]
fn cached_features_of_another_image_size_are_those_of_the_encoder() {
    let trial = Trial::new();
    let encoder = golden("encoders/resolution/siglip");
    let vision = ["--vision", text(&encoder)];
    assert_cached_features_equal(&trial, &[&vision[..], &["--image-size", "48"]].concat());
    let features = trial.path("features");
    let other = [&vision[..], &["--image-size", "24", "--features", text(&features)]].concat();
    trial.pretrain(&other).assert_error(2, &["features"]);
}

#[test]
fn an_encoder_of_open_clip_is_trained_with_and_exported() {
    let trial = Trial::new();
    let encoder = golden("encoders/open_clip/quick_gelu");
    let described = vlm(&["inspect", text(&encoder)]).stdout;
    assert!(described.contains("vision encoder: Clip, width 24, 2 blocks"), "{described}");
    assert_cached_features_equal(&trial, &["--vision", text(&encoder)]);
    trial.pretrain(&["--vision", text(&encoder)]).assert_success();
    let (out, exported) = (trial.path("out"), trial.path("exported"));
    vlm(&["convert", text(&out), "--export-hf", text(&exported)]).assert_success();
    assert_eq!(read_json(&exported.join("vision/config.json"))["hidden_act"], "quick_gelu");
    assert_same_loss(&trial, &out, &exported, 1e-5);
}
