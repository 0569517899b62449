//! Stopping a run and resuming it.

use std::fs;
use std::process::Stdio;

use crate::support::{Trial, signal, wait_for_lines};

const LONG: [&str; 4] = ["--epochs", "40", "--save-interval", "5"];

#[test]
fn run_resumed_after_ctrl_c_equals_an_uninterrupted_run() {
    let uninterrupted = Trial::new();
    uninterrupted.pretrain(&LONG).assert_success();

    let stopped = Trial::new();
    let mut child =
        stopped.command(&LONG).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_lines(&stopped, "out", 10);
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(0), "Ctrl-C ends the run successfully");
    assert_eq!(stopped.summary()["status"], "interrupted");
    let done = stopped.metrics().len();
    assert!((10..80).contains(&done), "stopped after {done} of 80 steps");

    let mut again = LONG.to_vec();
    again.extend(["--resume", "auto"]);
    stopped.pretrain(&again).assert_success();
    assert_eq!(stopped.summary()["status"], "finished");
    let weights = |trial: &Trial| fs::read(trial.path("out/pretrain_vlm_32.safetensors")).unwrap();
    assert!(weights(&uninterrupted) == weights(&stopped), "the weights differ");
    let losses = |trial: &Trial| -> Vec<String> {
        trial.metrics().iter().map(|line| line["loss"].to_string()).collect()
    };
    assert_eq!(losses(&uninterrupted), losses(&stopped));
}

#[test]
fn a_run_is_not_resumed_with_other_settings() {
    let trial = Trial::new();
    trial.pretrain(&["--epochs", "2"]).assert_success();
    let before = fs::read(trial.path("out/pretrain_vlm_32.pth")).unwrap();
    let ended = trial.pretrain(&["--epochs", "1", "--resume", "auto"]);
    ended.assert_error(2, &["other settings", "optim.epochs was 2 and is now 1"]);
    assert!(fs::read(trial.path("out/pretrain_vlm_32.pth")).unwrap() == before);
}
