//! When and how a run saves: in the background, on request, before its time limit, and when a save
//! fails; and which losses it reports and skips.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::parallel;
use crate::support::{Ended, Trial, binary, json_lines, signal, wait_for_lines, xtask};

/// A run that does not end by itself.
const ENDLESS: [&str; 4] = ["--epochs", "100000", "--save-interval", "100000"];

fn has_checkpoint(trial: &Trial) -> bool {
    let names = fs::read_dir(trial.path("out/checkpoints")).into_iter().flatten().flatten();
    names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
}

#[test]
fn a_run_that_saves_in_the_background_equals_one_that_does_not() {
    let [background, foreground] = [&[][..], &["--no-background-saves"]].map(|more| {
        let trial = Trial::new();
        let flags = ["--epochs", "4", "--save-interval", "1", "--ema-decay", "0.9"];
        trial.pretrain(&[&flags[..], more].concat()).assert_success();
        trial
    });
    for file in [
        "pretrain_vlm_32.pth",
        "pretrain_vlm_32_ema.safetensors",
        "checkpoints/step-00000007/model.safetensors",
        "checkpoints/step-00000007/optimizer.safetensors",
    ] {
        let read = |trial: &Trial| fs::read(trial.path("out").join(file)).unwrap();
        assert!(read(&background) == read(&foreground), "{file} differs");
    }
    let waits =
        background.metrics().iter().map(|line| line["save_wait_ms"].as_f64().unwrap()).sum::<f64>();
    assert!(waits > 0.0, "the copy of the weights takes time");
    assert!(background.summary()["save_wait_secs"].as_f64().unwrap() * 1e3 > waits);
}

#[test]
fn all_ranks_save_on_request_of_one_and_continue() {
    let trial = Trial::new();
    let flags = [&ENDLESS[..], &["--batch-size", "2", "--num-threads", "1"]].concat();
    let ranks = parallel::start_all((0..2).map(|_| trial.command(&flags)).collect());
    wait_for_lines(&trial, "out", 2);
    assert!(!has_checkpoint(&trial));
    signal(&ranks[1], "USR1");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !has_checkpoint(&trial) {
        assert!(Instant::now() < deadline, "no checkpoint after SIGUSR1");
        std::thread::sleep(Duration::from_millis(5));
    }
    wait_for_lines(&trial, "out", trial.metrics().len() + 2);
    signal(&ranks[0], "TERM");
    for ended in parallel::end(ranks) {
        ended.assert_success();
    }
}

#[test]
fn a_run_ends_with_a_checkpoint_before_its_time_limit() {
    let trial = Trial::new();
    let ended = trial.pretrain(&[&ENDLESS[..], &["--time-limit", "3s"]].concat());
    ended.assert_success();
    assert_eq!(trial.summary()["status"], "interrupted");
    assert!(has_checkpoint(&trial));
    trial.pretrain(&["--time-limit", "soon"]).assert_error(2, &["--time-limit", "such as 90m"]);
}

#[test]
fn a_run_whose_saves_fail_continues_if_asked_and_ends_with_an_error() {
    // Weights are larger than the limit, and metrics.jsonl is smaller.
    for (more, steps) in
        [(&["--on-save-error", "continue"][..], 6), (&["--no-background-saves"], 1)]
    {
        let trial = Trial::new();
        let command = trial.command(&[&["--epochs", "3", "--save-interval", "1"], more].concat());
        let mut limited = Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 300; exec \"$0\" \"$@\""]);
        limited.arg(command.get_program()).args(command.get_args()).env("OMP_NUM_THREADS", "1");
        let ended = Ended::of(&limited.output().unwrap());
        ended.assert_error(1, &["the checkpoint of step", "File too large"]);
        assert_eq!(trial.metrics().len(), steps, "{}", ended.stderr);
        let warnings = ended.stderr.matches("--on-save-error is continue").count();
        assert_eq!(warnings, steps - 1, "a warning for each save but the last");
    }
}

#[test]
fn sudden_rises_of_the_loss_are_reported_with_their_rows_and_skipped_if_asked() {
    // So small a factor reports every loss above the median.
    let flags = [
        "--epochs", "12", "--learning-rate", "1e-5", "--loss-spike-factor", "1.000001",
        "--skip-loss-spikes",
    ];
    let whole = Trial::new();
    let ended = whole.pretrain(&flags);
    ended.assert_success();
    let reports = json_lines(&whole.path("out/loss_spikes.jsonl"));
    assert!(!reports.is_empty());
    assert_eq!(whole.summary()["skipped_updates"], reports.len());
    for report in &reports {
        assert_eq!(report["skipped"], true);
        assert!(report["loss"].as_f64() > report["median"].as_f64(), "{report}");
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 4);
        let row = rows[0].as_str().unwrap();
        assert!(row.contains("rows.jsonl") && ended.stderr.contains(row), "{row}");
        let line = &whole.metrics()[report["step"].as_u64().unwrap() as usize - 1];
        assert!(line["grad_norm"].is_null(), "the update is skipped: {line}");
    }
    // The losses before a checkpoint count after it, too.
    let trial = Trial::new();
    trial.pretrain(&[&flags[..], &["--max-steps", "13"]].concat()).assert_success();
    trial.pretrain(&[&flags[..], &["--resume", "auto"]].concat()).assert_success();
    assert_eq!(json_lines(&trial.path("out/loss_spikes.jsonl")).len(), reports.len());
    let weights = |trial: &Trial| fs::read(trial.path("out/pretrain_vlm_32.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&trial), "the weights differ");
    let refused =
        trial.pretrain(&["--epochs", "12", "--learning-rate", "1e-5", "--resume", "auto"]);
    refused.assert_error(2, &["--skip-loss-spikes"]);
}

#[test]
fn a_program_without_memory_says_so_and_ends_with_an_error() {
    // From too little to load libtorch to too little for a step.
    for megabytes in [300, 410, 440, 455] {
        let trial = Trial::new();
        let command = trial.command(&[]);
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -v \"$0\"; exec \"$@\""]).arg((megabytes << 10).to_string());
        limited.arg(command.get_program()).args(command.get_args()).env("OMP_NUM_THREADS", "1");
        let ended = Ended::of(&limited.output().unwrap());
        let is_named = ["failed to map", "memory"].iter().any(|part| ended.stderr.contains(part));
        let is_orderly = ended.code == 0 || is_named && !ended.stderr.contains("internal error");
        assert!(is_orderly, "{megabytes} MB: exit {}: {}", ended.code, ended.stderr);
    }
}

#[test]
fn killed_and_disturbed_runs_keep_what_is_promised() {
    let mut command = Command::new(xtask());
    command.args(["torture", "--kills", "6", "--faults", "--only", "file size", "--only"]);
    command.args(["stopped process", "--program"]).arg(binary()).stdin(Stdio::null());
    let ended = Ended::of(&command.output().unwrap());
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("every promise was kept"), "{}", ended.stdout);
}
