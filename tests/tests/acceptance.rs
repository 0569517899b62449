//! Data-parallel training held to one process over more than fifty steps. The differences are printed by
//! `cargo xtask test -p vlm-tests -- acceptance --nocapture`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::parallel::{Difference, shared_batches, train, trial};
use crate::support::Trial;

/// Of three steps, the last one of five rows.
const EPOCHS: [&str; 2] = ["--epochs", "18"];
const STEPS: usize = 54;

/// Prints how far the runs are from each other, and fails where that is far.
fn hold(what: &str, trial: &Trial, one: &str, other: &str) {
    let difference = Difference::between(trial, one, other);
    let Difference { losses, loss, weight } = &difference;
    println!(
        "{what}, {one} against {other}: {losses} steps, loss {loss:.1e}, weights {weight:.1e}"
    );
    assert_eq!(*losses, STEPS);
    difference.assert_small();
}

/// One process with batches of eight, two with four each, four with two each.
fn hold_ranks_to_one_process(what: &str, more: &[&str]) {
    let trial = trial();
    let more = [&EPOCHS[..], more].concat();
    for (world_size, out) in [(1, "1x8"), (2, "2x4"), (4, "4x2")] {
        train(&trial, world_size, out, &more);
    }
    hold(what, &trial, "1x8", "2x4");
    hold(what, &trial, "1x8", "4x2");
}

#[test]
fn dense_model_on_ranks_is_that_of_one_process() {
    hold_ranks_to_one_process("dense", &[]);
}

#[test]
fn experts_on_ranks_are_those_of_one_process() {
    hold_ranks_to_one_process("experts", &["--use-moe"]);
}

#[test]
fn accumulated_gradients_on_ranks_are_those_of_one_process() {
    hold_ranks_to_one_process("two micro-batches", &["--accumulation-steps", "2"]);
}

#[test]
fn packed_rows_on_ranks_are_those_of_one_process() {
    hold_ranks_to_one_process("packed", &["--pack"]);
}

#[test]
fn run_resumed_on_two_of_four_ranks_and_then_on_one_is_an_undisturbed_one() {
    let trial = trial();
    train(&trial, 1, "1x8", &EPOCHS);
    for (world_size, max_steps) in [(4, "20"), (2, "40"), (1, "54")] {
        let more = ["--resume", "auto", "--save-interval", "7", "--max-steps", max_steps];
        train(&trial, world_size, "4-2-1", &[&EPOCHS[..], &more].concat());
        let left = trial.path(&format!("4-2-1/checkpoints/step-000000{max_steps}/state.json"));
        assert!(left.is_file(), "{} is what the next goes on from", left.display());
    }
    hold("resumed", &trial, "1x8", "4-2-1");
}

/// What `TORCHRUN` names, else what is on the `PATH`.
fn torchrun() -> Option<PathBuf> {
    if let Some(named) = env::var_os("TORCHRUN").map(PathBuf::from) {
        assert!(named.is_file(), "TORCHRUN is {}, which is no file", named.display());
        return Some(named);
    }
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join("torchrun")).find(|path| path.is_file())
}

#[test]
#[ignore = "two runs of 54 steps: takes 10 s, and needs torchrun"]
fn ranks_that_torchrun_starts_are_one_process() {
    let Some(torchrun) = torchrun() else {
        println!("skipped: no torchrun on the PATH; TORCHRUN may name one");
        return;
    };
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
    hold("torchrun", &trial, "1x8", "torchrun");
}
