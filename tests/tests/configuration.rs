//! Settings from files, recipes and flags. A run can be repeated from its `config.json`, and the
//! output of `config show` is a configuration file.

use std::path::Path;

use crate::support::{Trial, vlm};

fn losses(trial: &Trial, out: &str) -> Vec<f64> {
    let lines = crate::support::json_lines(&trial.path(out).join("metrics.jsonl"));
    lines.iter().filter_map(|line| line["loss"].as_f64()).collect()
}

fn text_of(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_run_can_be_repeated_from_its_config_json() {
    let trial = Trial::new();
    let settings =
        ["--lr-schedule", "cosine", "--lr-projector", "2e-3", "--seed", "5", "--epochs", "2"];
    trial.pretrain(&settings).assert_success();
    let config = text_of(&trial.path("out/config.json"));
    let again = text_of(&trial.path("again"));
    vlm(&["pretrain", "--config", &config, "--out-dir", &again]).assert_success();
    let first = losses(&trial, "out");
    assert!(first.len() > 2, "{first:?}");
    assert_eq!(first, losses(&trial, "again"));
}

#[test]
fn a_flag_overrides_the_config_json_of_a_run() {
    let trial = Trial::new();
    trial.pretrain(&["--epochs", "2"]).assert_success();
    let config = text_of(&trial.path("out/config.json"));
    let again = text_of(&trial.path("again"));
    let changed = ["pretrain", "--config", &config, "--out-dir", &again, "--lr-projector", "1e-5"];
    vlm(&changed).assert_success();
    let (first, other) = (losses(&trial, "out"), losses(&trial, "again"));
    assert_eq!(first[0], other[0]);
    assert_ne!(first.last(), other.last());
}

#[test]
fn moving_average_differs_from_the_weights_and_is_resumed_exactly() {
    let trial = Trial::new();
    let settings = ["--ema-decay", "0.5", "--epochs", "2", "--save-interval", "1"];
    trial.pretrain(&settings).assert_success();
    let read = |out: &str, name: &str| {
        let path = trial.path(out).join(format!("pretrain_vlm_32{name}.safetensors"));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let average = read("out", "_ema");
    assert_ne!(average, read("out", ""));
    let out = text_of(&trial.path("parts"));
    let part = |more: &[&str]| {
        let mut all = settings.to_vec();
        all.extend(["--out-dir", out.as_str()]);
        all.extend(more);
        trial.pretrain(&all).assert_success();
    };
    part(&["--max-steps", "2"]);
    part(&["--resume", "auto"]);
    assert_eq!(read("parts", "_ema"), average);
    let other = ["--resume", "auto", "--ema-decay", "0.6", "--out-dir", out.as_str()];
    trial
        .pretrain(&[&settings[2..], &other].concat())
        .assert_error(2, &["ema_decay", "0.5", "0.6"]);
}

#[test]
fn output_of_config_show_is_a_configuration_file() {
    let flags = ["--recipe", "nanovlm", "--epochs", "3", "--betas", "0.8,0.9"];
    let shown = vlm(&[&["config", "show", "pretrain"], flags.as_slice()].concat());
    shown.assert_success();
    assert!(shown.stdout.contains("epochs = 3  # flag"), "{}", shown.stdout);
    assert!(shown.stdout.contains("lr-projector = 5.12e-3  # recipe nanovlm"), "{}", shown.stdout);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shown.toml");
    std::fs::write(&path, &shown.stdout).unwrap();
    let again = vlm(&["config", "show", "pretrain", "--config", path.to_str().unwrap()]);
    again.assert_success();
    let values = |text: &str| {
        let lines = text.lines().map(|line| line.split("  # ").next().unwrap_or_default());
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(values(&shown.stdout), values(&again.stdout));
}

#[test]
fn invalid_settings_and_settings_without_effect_are_named_with_their_flags() {
    let trial = Trial::new();
    for (flags, parts) in [
        (vec!["--min-lr-ratio", "0.2"], vec!["--min-lr-ratio", "--lr-schedule"]),
        (vec!["--lr-vision", "1e-5"], vec!["--lr-vision", "--train-vision"]),
        (vec!["--warmup-iters", "3", "--warmup-fraction", "0.1"], vec!["--warmup-fraction"]),
        (vec!["--recipe", "minimind-9"], vec!["--recipe", "minimind-9", "llava-pretrain"]),
        (vec!["--betas", "0.9"], vec!["--betas", "two numbers"]),
    ] {
        trial.pretrain(&flags).assert_error(2, &parts);
    }
}

/// Rows with a caption and the image under an unknown key.
fn write_rows_with_an_unknown_key(trial: &Trial) {
    let rows: Vec<String> = (0..8)
        .map(|k| {
            serde_json::json!({"scan": format!("{k}.png"), "caption": "A red circle."}).to_string()
        })
        .collect();
    trial.write_rows(&rows);
}

#[test]
fn training_and_preparation_read_rows_with_the_same_settings() {
    let trial = Trial::new();
    write_rows_with_an_unknown_key(&trial);
    trial.pretrain(&[]).assert_error(1, &["scan"]);
    let settings = ["--image-key", "scan", "--caption-question", "What is it?"];
    let more = ["--out-dir", &text_of(&trial.path("read"))];
    trial.pretrain(&[settings, [more[0], more[1], "--seed", "1"]].concat()).assert_success();
    let samples: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(trial.path("read/summary.json")).unwrap())
            .unwrap();
    assert_eq!(samples["samples"], 8);

    let prepare = |more: &[&str]| {
        let (rows, images) = (text_of(&trial.path("rows.jsonl")), text_of(&trial.path("images")));
        let output = text_of(&trial.path("shards"));
        let mut command = std::process::Command::new(crate::support::xtask());
        command.args(["prepare-data", "--input", &rows, "--images-path", &images]);
        command.args(["--output", &output, "--vision"]);
        command.arg(crate::support::golden("vision_tower"));
        command.arg("--tokenizer").arg(crate::support::demo_start("")).args(more);
        crate::support::Ended::of(&command.output().unwrap())
    };
    prepare(&settings).assert_success();
    // With other settings the rows are different.
    prepare(&settings[..2]).assert_error(2, &["What is it?"]);
    let shards = text_of(&trial.path("shards"));
    let of_shards = ["--data-path", &shards, "--out-dir", &text_of(&trial.path("prepared"))];
    trial.pretrain(&[&of_shards[..], &["--seed", "1"]].concat()).assert_success();
    assert_eq!(losses(&trial, "read"), losses(&trial, "prepared"));
    prepare(&["--min-rating", "relevance"]).assert_error(2, &["relevance", "relevance=3"]);
}

#[test]
fn a_bucket_window_that_is_too_small_to_batch_by_length_is_a_warning() {
    for (window, is_named) in [("7", true), ("8", false), ("0", false)] {
        let ended = Trial::new().pretrain(&["--bucket-window", window]);
        ended.assert_success();
        let found = ended.stderr.contains("--bucket-window of 7 rows is less than two batches");
        assert_eq!(found, is_named, "{window}: {}", ended.stderr);
    }
}
