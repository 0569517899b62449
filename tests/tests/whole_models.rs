//! Whole models of other programs: evaluation, generation, and training that starts from them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Ended, Trial, golden, program, vlm};

/// A copy of a golden folder of another program, with a tokenizer in it.
fn whole_model(trial: &Trial, name: &str) -> PathBuf {
    let folder = trial.path(name);
    fs::create_dir_all(&folder).unwrap();
    for from in [golden("foreign_models").join(name), golden("foreign_models/tokenizer")] {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "expected.safetensors" {
                fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
            }
        }
    }
    folder
}

/// Runs `vlm pretrain` on the rows of the trial, with the flags `more`.
fn pretrain(trial: &Trial, out: &str, more: &[&str]) -> Ended {
    let mut command = program();
    command.arg("pretrain").arg("--data-path").arg(trial.path("rows.jsonl"));
    command.arg("--images-path").arg(trial.path("images")).arg("--out-dir").arg(trial.path(out));
    command.args(["--device", "cpu", "--batch-size", "8", "--log-interval", "1"]);
    Ended::of(&command.args(more).output().unwrap())
}

/// The loss of a model on the rows of the trial.
pub fn loss(trial: &Trial, model: &Path) -> f64 {
    let (rows, images) = (trial.path("rows.jsonl"), trial.path("images"));
    let ended = vlm(&[
        "eval",
        "--model",
        model.to_str().unwrap(),
        "--data-path",
        rows.to_str().unwrap(),
        "--images-path",
        images.to_str().unwrap(),
        "--device",
        "cpu",
        "--max-rows",
        "2",
        "--max-new-tokens",
        "4",
        "--json",
    ]);
    ended.assert_success();
    serde_json::from_str::<Value>(&ended.stdout).unwrap()["loss"].as_f64().unwrap()
}

#[test]
fn training_starts_from_a_whole_model_with_its_projector_and_goes_on_from_its_own_run() {
    let trial = Trial::new();
    for (name, kind) in [("llava_1_5", "mlp2x-gelu"), ("idefics3", "pixel-shuffle")] {
        let folder = whole_model(&trial, name);
        let before = loss(&trial, &folder);
        let from = ["--init-from", folder.to_str().unwrap()];
        let still = ["--max-steps", "1", "--learning-rate", "1e-12"];
        pretrain(&trial, "still", &[&from[..], &still].concat()).assert_success();
        let after = loss(&trial, &trial.path("still"));
        assert!((after - before).abs() < 1e-5, "{name}: {before} and {after}");

        let learn = ["--epochs", "4", "--learning-rate", "3e-3", "--train-lm"];
        pretrain(&trial, "out", &[&from[..], &learn].concat()).assert_success();
        let out = trial.path("out");
        let learned = loss(&trial, &out);
        assert!(learned < before - 0.5, "{name}: {before} and {learned}");
        let config = fs::read_to_string(out.join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["projector"]["kind"], kind);
        assert_eq!(config["image_token"], "<image>");

        // The run is a whole model, too, and its settings can be repeated.
        let from = ["--init-from", out.to_str().unwrap()];
        pretrain(&trial, "next", &[&from[..], &still].concat()).assert_success();
        assert!((loss(&trial, &trial.path("next")) - learned).abs() < 1e-5, "{name}");
        let settings = out.join("config.json");
        let again = ["--config", settings.to_str().unwrap(), "--max-steps", "1"];
        pretrain(&trial, "again", &again).assert_success();
        for folder in ["still", "next", "again", "out"] {
            fs::remove_dir_all(trial.path(folder)).unwrap();
        }
    }
}

#[test]
fn settings_that_contradict_a_whole_model_are_refused_with_their_flags() {
    let trial = Trial::new();
    let folder = whole_model(&trial, "llava_1_5");
    let from = ["--init-from", folder.to_str().unwrap()];
    let refused = |more: &[&str], parts: &[&str]| {
        pretrain(&trial, "out", &[&from[..], more].concat()).assert_error(2, parts);
        assert!(!trial.path("out").exists());
    };
    refused(&["--lm", "none"], &["--init-from", "--lm none", "leave one of them out"]);
    refused(&["--projector", "linear"], &["--init-from", "--projector", "random one"]);
    refused(&["--dim", "64"], &["dim 32", "64 is asked for"]);
    let config = fs::read(folder.join("config.json")).unwrap();
    pretrain(&trial, "llava_1_5", &from).assert_error(2, &["--out-dir", "choose another one"]);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), config);
    let alone = golden("llama");
    let tower = golden("vision_tower");
    let tokenizer = golden("foreign_models/tokenizer");
    let paths = [alone.to_str().unwrap(), tower.to_str().unwrap(), tokenizer.to_str().unwrap()];
    let flags = ["--init-from", paths[0], "--vision", paths[1], "--tokenizer", paths[2]];
    pretrain(&trial, "out", &flags).assert_error(2, &["have no projector"]);
    let missing = trial.path("missing");
    pretrain(&trial, "out", &["--init-from", missing.to_str().unwrap()])
        .assert_error(2, &["--init-from", "there is no such file"]);
}

#[test]
fn a_part_that_a_folder_does_not_hold_is_asked_for_with_its_flag() {
    let trial = Trial::new();
    let nanovlm = golden("foreign_models/nanovlm");
    pretrain(&trial, "out", &["--init-from", nanovlm.to_str().unwrap()])
        .assert_error(2, &["--tokenizer", "SmolLM2-360M-Instruct"]);
    let minimind = whole_model(&trial, "minimind3v");
    pretrain(&trial, "out", &["--init-from", minimind.to_str().unwrap()])
        .assert_error(2, &["--vision", "SigLIP 2 base"]);
}

#[test]
fn a_whole_model_is_described_and_asked() {
    let trial = Trial::new();
    let folder = whole_model(&trial, "smolvlm");
    let ended = vlm(&["inspect", folder.to_str().unwrap()]);
    ended.assert_success();
    for part in [
        "whole model of the form smolvlm",
        "language model: Llama",
        "vision encoder: Siglip",
        "projector: pixel-shuffle, 4 tokens per image",
    ] {
        assert!(ended.stdout.contains(part), "{part:?} is not in {}", ended.stdout);
    }
    let image = trial.path("images/3.png");
    let ended = vlm(&[
        "generate",
        "--model",
        folder.to_str().unwrap(),
        "--image",
        image.to_str().unwrap(),
        "--prompt",
        "What is this?",
        "--device",
        "cpu",
        "--max-new-tokens",
        "3",
    ]);
    ended.assert_success();
    assert!(ended.stderr.contains("splits large images into tiles"), "{}", ended.stderr);
}
