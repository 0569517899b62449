//! Compares data-parallel training with training in one process over more than fifty steps. The
//! command `cargo xtask test -p vlm-tests -- acceptance --nocapture` prints the differences.

use std::env;
use std::process::Command;

use crate::parallel::{Difference, shared_batches, train, trial};
use crate::support::Trial;

/// Each epoch has three steps, the last of them with five rows.
const EPOCHS: [&str; 2] = ["--epochs", "18"];
const STEPS: usize = 54;

/// Prints the difference between two runs and fails if it is not small.
fn compare(what: &str, trial: &Trial, one: &str, other: &str) {
    let difference = Difference::between(trial, one, other);
    let Difference { losses, loss, weight } = &difference;
    println!(
        "{what}, {one} against {other}: {losses} steps, loss {loss:.1e}, weights {weight:.1e}"
    );
    assert_eq!(*losses, STEPS);
    difference.assert_small();
}

/// Compares one process with batches of eight, two with four each, and four with two each.
fn compare_ranks_with_one_process(what: &str, more: &[&str]) {
    let trial = trial();
    let more = [&EPOCHS[..], more].concat();
    for (world_size, out) in [(1, "1x8"), (2, "2x4"), (4, "4x2")] {
        train(&trial, world_size, out, &more);
    }
    compare(what, &trial, "1x8", "2x4");
    compare(what, &trial, "1x8", "4x2");
}

#[test]
fn dense_model_on_several_ranks_equals_that_of_one_process() {
    compare_ranks_with_one_process("dense", &[]);
}

#[test]
fn experts_on_several_ranks_equal_those_of_one_process() {
    compare_ranks_with_one_process("experts", &["--use-moe"]);
}

#[test]
fn gradient_accumulation_on_several_ranks_equals_that_of_one_process() {
    compare_ranks_with_one_process("two micro-batches", &["--accumulation-steps", "2"]);
}

#[test]
fn packed_training_on_several_ranks_equals_that_of_one_process() {
    compare_ranks_with_one_process("packed", &["--pack"]);
}

#[test]
fn run_resumed_with_fewer_ranks_equals_an_uninterrupted_run() {
    let trial = trial();
    train(&trial, 1, "1x8", &EPOCHS);
    for (world_size, max_steps) in [(4, "20"), (2, "40"), (1, "54")] {
        let more = ["--resume", "auto", "--save-interval", "7", "--max-steps", max_steps];
        train(&trial, world_size, "4-2-1", &[&EPOCHS[..], &more].concat());
        let state = trial.path(&format!("4-2-1/checkpoints/step-000000{max_steps}/state.json"));
        assert!(state.is_file(), "{} is missing", state.display());
    }
    compare("resumed", &trial, "1x8", "4-2-1");
}

#[test]
#[ignore = "needs torchrun (TORCHRUN) and takes 10 s"]
fn torchrun_ranks_equal_one_process() {
    let torchrun = env::var_os("TORCHRUN").unwrap_or_else(|| "torchrun".into());
    let trial = trial();
    train(&trial, 1, "1x8", &EPOCHS);
    let out = trial.path("torchrun");
    let flags = shared_batches(2, &[&EPOCHS[..], &["--out-dir", out.to_str().unwrap()]].concat());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let vlm = trial.command(&flags);
    let mut command = Command::new(torchrun);
    command.args(["--standalone", "--no-python", "--nproc-per-node", "2"]);
    command.arg(vlm.get_program()).args(vlm.get_args()).env("OMP_NUM_THREADS", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["world_size"], 2);
    compare("torchrun", &trial, "1x8", "torchrun");
}
