//! The command line: repeated flags, several paths, missing paths, unknown flags.

use std::fs;
use std::process::Command;

use crate::support::{Ended, Trial, demo_start, golden, vlm, xtask};

#[test]
fn a_missing_path_is_named_with_its_flag() {
    let ended = vlm(&["pretrain", "--data-path", "nothere.jsonl"]);
    ended.assert_error(2, &["--data-path nothere.jsonl", "no such file"]);
    let trial = Trial::new();
    let rows = trial.path("rows.jsonl");
    let ended = vlm(&["pretrain", "--data-path", rows.to_str().unwrap(), "--lm", "nothere.pth"]);
    ended.assert_error(2, &["--lm nothere.pth", "no such file"]);
    let ended = trial.pretrain(&["--vision", "openai/clip-vit-base-patch16"]);
    ended.assert_error(2, &["--vision openai/clip-vit-base-patch16", "hf download"]);
    assert!(!trial.path("out").exists());
}

#[test]
fn flags_of_other_trainers_give_a_hint_to_ours() {
    let ended = vlm(&["pretrain", "--lr", "1e-3"]);
    ended.assert_error(2, &["--lr", "--learning-rate"]);
    let ended = vlm(&["pretrain", "--vision_tower", "clip"]);
    ended.assert_error(2, &["--vision-tower", "--vision"]);
}

#[test]
fn a_repeated_flag_has_its_last_value_and_data_paths_add_up() {
    let trial = Trial::new();
    let rows = trial.path("rows.jsonl");
    let more = trial.path("more.jsonl");
    fs::copy(&rows, &more).unwrap();
    let out = trial.path("out");
    let ended = Ended::of(
        &trial
            .command(&["--batch-size", "2", "--batch-size", "8"])
            .arg("--data-path")
            .args([&rows, &more])
            .output()
            .unwrap(),
    );
    ended.assert_success();
    // Three data paths with 8 rows each (two here, one of the trial), in batches of 8.
    assert_eq!(trial.summary()["samples"], 24);
    assert_eq!(trial.summary()["steps"], 3);
    assert!(out.join("config.json").exists());
}

#[test]
fn out_dir_of_a_run_as_lm_gives_weights_encoder_and_tokenizer() {
    let trial = Trial::new();
    trial.pretrain(&[]).assert_success();
    let (first, second) = (trial.path("out"), trial.path("second"));
    let rows = trial.path("rows.jsonl");
    let images = trial.path("images");
    let flags = [
        ("--data-path", rows.as_path()),
        ("--images-path", images.as_path()),
        ("--lm", first.as_path()),
        ("--out-dir", second.as_path()),
    ];
    let mut args = vec!["pretrain", "--device", "cpu", "--epochs", "1", "--max-seq-len", "288"];
    for (flag, path) in &flags {
        args.extend([*flag, path.to_str().unwrap()]);
    }
    vlm(&args).assert_success();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(second.join("config.json")).unwrap()).unwrap();
    let model = &config["run"]["model"];
    assert_eq!(model["vision"], golden("vision_tower").to_str().unwrap());
    assert_eq!(model["tokenizer"], demo_start("").to_str().unwrap());
    assert_eq!(model["lm"], first.join("pretrain_vlm_32.safetensors").to_str().unwrap());
}

#[test]
fn preparing_with_another_tokenizer_needs_its_encoder() {
    let trial = Trial::new();
    let prepare = |more: &[&str]| {
        let mut command = Command::new(xtask());
        command.arg("prepare-data").arg("--input").arg(trial.path("rows.jsonl"));
        command.arg("--images-path").arg(trial.path("images"));
        command.arg("--tokenizer").arg(demo_start("")).arg("--output").arg(trial.path("prepared"));
        Ended::of(&command.args(more).output().unwrap())
    };
    prepare(&[]).assert_error(2, &["--vision", "--tokens-per-image"]);
    assert!(!trial.path("prepared").exists());
    prepare(&["--tokens-per-image", "196"]).assert_success();
}

#[test]
fn a_data_set_can_be_inspected() {
    let trial = Trial::new();
    let rows = trial.path("rows.jsonl");
    let ended = vlm(&["inspect", rows.to_str().unwrap()]);
    ended.assert_success();
    assert!(ended.stdout.contains("rows.jsonl: 8 rows"), "{}", ended.stdout);
    fs::write(trial.path("broken.jsonl"), "").unwrap();
    let broken = trial.path("broken.jsonl");
    vlm(&["inspect", broken.to_str().unwrap()]).assert_error(2, &["broken.jsonl", "no rows"]);
}

#[test]
fn completions_and_manual_pages_know_the_settings() {
    let completions = vlm(&["completions", "bash"]);
    completions.assert_success();
    assert!(completions.stdout.contains("--unfreeze-last-layers"));
    let folder = tempfile::tempdir().unwrap();
    vlm(&["man", folder.path().to_str().unwrap()]).assert_success();
    let page = fs::read_to_string(folder.path().join("vlm-pretrain.1")).unwrap();
    assert!(page.contains("unfreeze"), "{page}");
    assert!(folder.path().join("vlm.1").exists());
}
