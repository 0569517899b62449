//! Resuming a run: what must be the same as before, and what may change.

use std::fs;
use std::path::Path;

use crate::support::{Ended, Trial, demo_start, golden, json_lines, row};

/// Flags of a run that stops after two of four steps.
const HALF: [&str; 4] = ["--epochs", "2", "--max-steps", "2"];

/// A trial whose run has stopped after two of four steps.
fn half_a_run() -> Trial {
    let trial = Trial::new();
    trial.pretrain(&HALF).assert_success();
    trial
}

/// Resumes the run with additional flags.
fn resume(trial: &Trial, more: &[&str]) -> Ended {
    trial.pretrain(&[&["--epochs", "2", "--resume", "auto"], more].concat())
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn losses(out: &Path) -> Vec<String> {
    json_lines(&out.join("metrics.jsonl")).iter().map(|line| line["loss"].to_string()).collect()
}

/// A measurement may choose another type than before.
#[test]
fn an_automatic_dtype_is_that_of_the_run_to_continue() {
    for dtype in ["float32", "bfloat16"] {
        let trial = Trial::new();
        trial.pretrain(&[&HALF[..], &["--dtype", dtype]].concat()).assert_success();
        let ended = resume(&trial, &["--dtype", "auto"]);
        ended.assert_success();
        assert!(!ended.stderr.contains("GFLOP/s"), "{}", ended.stderr);
    }
}

#[test]
fn moved_files_do_not_change_a_resumed_run() {
    let whole = Trial::new();
    whole.pretrain(&["--epochs", "2"]).assert_success();
    let trial = half_a_run();
    copy_folder(&trial.path("images"), &trial.path("new/images"));
    fs::rename(trial.path("rows.jsonl"), trial.path("new/other.jsonl")).unwrap();
    copy_folder(&demo_start(""), &trial.path("new/tokenizer"));
    copy_folder(&golden("vision_tower"), &trial.path("new/vision"));
    fs::rename(trial.path("out"), trial.path("new/out")).unwrap();
    let path = |name: &str| trial.path(name).display().to_string();
    resume(
        &trial,
        &[
            "--data-path",
            &path("new/other.jsonl"),
            "--images-path",
            &path("new/images"),
            "--tokenizer",
            &path("new/tokenizer"),
            "--vision",
            &path("new/vision"),
            "--out-dir",
            &path("new/out"),
        ],
    )
    .assert_success();
    assert_eq!(losses(&trial.path("new/out")), losses(&whole.path("out")));
    let weights = |out: &Path| fs::read(out.join("pretrain_vlm_32.safetensors")).unwrap();
    assert!(weights(&trial.path("new/out")) == weights(&whole.path("out")), "the weights differ");
}

#[test]
fn changed_rows_encoder_tokenizer_and_settings_are_refused_by_name() {
    let trial = half_a_run();
    let settings = [
        (vec!["--dtype", "bfloat16"], "dtype was \"float32\" and is now \"bfloat16\" (--dtype)"),
        (vec!["--pack"], "padding was \"longest\" and is now \"none\""),
        (vec!["--drop-last"], "drop_last was false and is now true (--drop-last)"),
        (vec!["--dropout", "0.1"], "(--dropout)"),
        (vec!["--batch-size", "2"], "optim.batch_size was 4 and is now 2"),
        (vec!["--learning-rate", "1e-3"], "optim.learning_rate was 0.0004 and is now 0.001"),
    ];
    for (flags, message) in settings {
        resume(&trial, &flags).assert_error(2, &["other settings", message]);
    }
    let tokenizer = trial.path("tokenizer");
    copy_folder(&demo_start(""), &tokenizer);
    let config = tokenizer.join("tokenizer_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let changed =
        text.replacen("{% for", "{{ ' ' }}{% for", 1).replacen("{%- for", "{{ ' ' }}{%- for", 1);
    assert_ne!(text, changed, "the template has a loop");
    fs::write(&config, changed).unwrap();
    let ended = resume(&trial, &["--tokenizer", tokenizer.to_str().unwrap()]);
    ended.assert_error(2, &["other settings", "tokenizer was"]);

    let vision = trial.path("vision");
    copy_folder(&golden("vision_tower"), &vision);
    let file = vision.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    // In the middle of the file: the projection at its end is not used.
    let at = bytes.len() / 8 * 4;
    bytes[at..at + 4].copy_from_slice(&0.125_f32.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let ended = resume(&trial, &["--vision", vision.to_str().unwrap()]);
    ended.assert_error(2, &["--vision", "the weights of the vision encoder"]);

    let rows = fs::read_to_string(trial.path("rows.jsonl")).unwrap();
    fs::write(trial.path("rows.jsonl"), rows.clone() + &row("0.png", "A new circle.") + "\n")
        .unwrap();
    resume(&trial, &[]).assert_error(2, &["rows was \"8 rows, ", "and is now \"9 rows, "]);
    fs::write(trial.path("rows.jsonl"), rows.replace("A pink", "A fine")).unwrap();
    resume(&trial, &[]).assert_error(2, &["other settings", "rows was \"8 rows, "]);
    // The refusals changed nothing: with the original files the run continues.
    fs::write(trial.path("rows.jsonl"), rows).unwrap();
    resume(&trial, &[]).assert_success();
    assert_eq!(trial.metrics().len(), 4);
}

#[test]
fn more_epochs_continue_with_the_learning_rates_of_the_longer_schedule() {
    let whole = Trial::new();
    whole.pretrain(&["--epochs", "2"]).assert_success();
    let trial = Trial::new();
    trial.pretrain(&["--epochs", "1"]).assert_success();
    let ended = trial.pretrain(&["--epochs", "2", "--resume", "auto"]);
    ended.assert_success();
    assert!(ended.stderr.contains("--epochs was 1 and is now 2"), "{}", ended.stderr);
    let rates = |trial: &Trial| -> Vec<String> {
        trial.metrics()[2..].iter().map(|line| line["lr"].to_string()).collect()
    };
    assert_eq!(rates(&trial).len(), 2);
    assert_eq!(rates(&trial), rates(&whole));
}

#[test]
fn float16_run_resumed_without_a_loss_scale_gets_one() {
    let trial = Trial::new();
    let float16 = ["--dtype", "float16"];
    trial.pretrain(&[&HALF[..], &float16].concat()).assert_success();
    let state = |step: u64| trial.path(&format!("out/checkpoints/step-{step:08}/state.json"));
    // The file of an earlier version for a float32 run, which did not record the dtype.
    let mut old: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(state(2)).unwrap()).unwrap();
    old["version"] = 1.into();
    old["position"]["scaler"] = serde_json::Value::Null;
    old.as_object_mut().unwrap().remove("checksum");
    old["identity"].as_object_mut().unwrap().remove("dtype");
    fs::write(state(2), old.to_string()).unwrap();
    let ended = resume(&trial, &float16);
    ended.assert_success();
    assert!(ended.stderr.contains("did not record dtype"), "{}", ended.stderr);
    let new: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(state(4)).unwrap()).unwrap();
    assert!(new["position"]["scaler"]["scale"].as_f64().unwrap() >= 1.0, "{new}");
}

#[test]
fn limit_on_rejected_rows_is_for_the_whole_of_a_resumed_epoch() {
    let trial = Trial::new();
    let mut rows: Vec<String> =
        (0..40).map(|k| row(&format!("{}.png", k % 8), "A circle.")).collect();
    // One of the last four rows is broken, but only one of all 40.
    rows[38] = row("missing.png", "A circle.");
    trial.write_rows(&rows);
    let flags = ["--no-shuffle", "--max-steps", "9"];
    trial.pretrain(&flags).assert_success();
    trial.pretrain(&["--no-shuffle", "--resume", "auto"]).assert_success();
    assert_eq!(trial.summary()["rejected_rows"], 1);
}
