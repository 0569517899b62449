//! Processes that train one model together: different settings, signals, processes that hang or are
//! slow.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::parallel::{end, metrics, shared_batches, start, start_all, train, trial};
use crate::support::{Trial, row, signal, wait_for_lines};

#[test]
fn ranks_with_different_settings_are_refused_with_both_values() {
    let trial = trial();
    let flags = |lr| vec!["--learning-rate", lr];
    let ended = end(start(&trial, "out", &[flags("1e-3"), flags("2e-3")]));
    for ended in &ended {
        ended.assert_error(2, &["learning_rate is 0.001 on rank 0, 0.002 on rank 1"]);
    }
    assert!(!trial.path("out").exists(), "nothing was written");
}

#[test]
fn ranks_with_different_rows_are_refused() {
    let trial = trial();
    let mut rows = vec![row("1.png", "A circle."); 200];
    trial.write_rows(&rows);
    rows[101] = row("1.png", "A square.");
    let other = trial.path("other.jsonl");
    fs::write(&other, rows.join("\n") + "\n").unwrap();
    let ended = end(start(&trial, "out", &[vec![], vec!["--data-path", other.to_str().unwrap()]]));
    for ended in &ended {
        ended.assert_error(2, &["data is \"200 rows, ", "on rank 0, ", "on rank 1"]);
    }
}

#[test]
fn an_error_of_one_rank_stops_all_ranks_with_its_reason() {
    let trial = trial();
    let ended = end(start(&trial, "out", &[vec![], vec!["--vision", "no/such/folder"]]));
    ended[0].assert_error(2, &["rank 1: ", "no/such/folder"]);
    ended[1].assert_error(2, &["no/such/folder"]);
}

#[test]
fn a_signal_to_one_rank_stops_all_at_the_same_step_after_a_save() {
    let trial = trial();
    let flags = vec!["--epochs", "200", "--num-threads", "1", "--batch-size", "4"];
    let children = start(&trial, "out", &[flags.clone(), flags]);
    wait_for_lines(&trial, "out", 5);
    signal(&children[1], "TERM");
    for ended in end(children) {
        ended.assert_success();
    }
    assert_eq!(trial.summary()["status"], "interrupted");
    let steps = trial.summary()["steps"].as_u64().unwrap();
    assert!(trial.path(&format!("out/checkpoints/step-{steps:08}/state.json")).exists());
}

/// Kills a process that hangs.
fn kill(hanging: Child) {
    signal(&hanging, "KILL");
    hanging.wait_with_output().unwrap();
}

#[test]
fn a_killed_or_hanging_rank_is_reported_by_the_others_within_the_timeout() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    // Time for a step that had started and for ending the process on a busy machine.
    const MARGIN: Duration = Duration::from_millis(1500);
    let stopped = "rank 1 does not respond; it last reported step ";
    // Rank 0 runs the store: without it only earlier heartbeats are known.
    let unknown = "the store, which rank 0 or the launcher runs, does not respond";
    for (name, target, state) in [("KILL", 1, stopped), ("STOP", 1, stopped), ("STOP", 0, unknown)]
    {
        let trial = trial();
        let flags = vec!["--epochs", "200", "--num-threads", "1", "--timeout-secs", "4"];
        let mut children = start(&trial, "out", &[flags.clone(), flags]);
        wait_for_lines(&trial, "out", 5);
        signal(&children[target], name);
        let sent = Instant::now();
        let hanging = children.remove(target);
        let ended = end(children);
        let took = sent.elapsed();
        kill(hanging);
        let place = format!("rank {} of 2, step ", 1 - target);
        ended[0].assert_error(1, &[&place, &format!("Other ranks: {state}")]);
        assert!(took <= TIMEOUT + MARGIN, "{name} to rank {target}: reported after {took:?}");
        println!("{name} to rank {target}: reported after {took:?}");
    }
}

/// Writes 600 rows, whose evaluation takes seconds, and returns the path of the file.
fn held_out(trial: &Trial) -> String {
    let rows: Vec<String> =
        (0..600).map(|k| row(&format!("{}.png", k % 8), "A circle beside a square.")).collect();
    let path = trial.path("held_out.jsonl");
    fs::write(&path, rows.join("\n")).unwrap();
    path.display().to_string()
}

#[test]
fn an_evaluation_longer_than_the_timeout_does_not_end_the_run() {
    const TIMEOUT_SECS: f64 = 3.0;
    let trial = trial();
    let held_out = held_out(&trial);
    let flags = ["--eval-data", &held_out, "--eval-captions", "600"];
    train(&trial, 2, "out", &[&flags[..], &["--timeout-secs", "3"]].concat());
    let lines = metrics(&trial, "out");
    let took = lines.iter().find_map(|line| line["eval_secs"].as_f64()).unwrap();
    assert!(took > TIMEOUT_SECS, "{took} s is too short to test a timeout of {TIMEOUT_SECS} s");
    assert_eq!(trial.summary()["status"], "finished");
}

/// Compiles a library that makes writing to disk slow; see `preload/slow_disk.c`.
fn slow_disk(trial: &Trial) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("preload/slow_disk.c");
    let library = trial.path("slow_disk.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    assert!(compiled.unwrap().success());
    library
}

#[test]
fn a_save_longer_than_the_timeout_does_not_end_the_run() {
    // Each of three files takes four seconds to reach the disk.
    const BYTES_PER_SEC: &str = "6000000";
    let trial = trial();
    let library = slow_disk(&trial);
    let flags = ["--dim", "512", "--n-heads", "8", "--unfreeze-last-layers", "0"];
    let flags = [&flags[..], &["--max-steps", "1", "--timeout-secs", "4"]].concat();
    let command = |_| {
        let mut command = trial.command(&flags);
        command.env("LD_PRELOAD", &library).env("SLOW_DISK_BYTES_PER_SEC", BYTES_PER_SEC);
        command
    };
    let started = Instant::now();
    for ended in end(start_all((0..2).map(command).collect())) {
        ended.assert_success();
    }
    let took = started.elapsed();
    let bytes = fs::metadata(trial.path("out/pretrain_vlm_512.safetensors")).unwrap().len();
    assert!(bytes > 20_000_000 && took > Duration::from_secs(11), "{bytes} bytes in {took:?}");
}

#[test]
fn an_interrupted_evaluation_is_repeated_after_resuming() {
    let trial = trial();
    let held_out = held_out(&trial);
    let flags = ["--eval-data", &held_out, "--eval-captions", "600"];
    let flags = [&flags[..], &["--eval-interval", "2", "--max-steps", "3"]].concat();
    train(&trial, 2, "whole", &flags);
    let is_evaluation = |line: &serde_json::Value| !line["eval_loss"].is_null();

    let resumed = [&flags[..], &["--resume", "auto"]].concat();
    // Rank 0 evaluates; with two ranks the signal goes to the other one, which waits for it.
    for (target, world_size) in [(0, 1), (1, 2)] {
        let shared = shared_batches(world_size, &resumed);
        let shared: Vec<&str> = shared.iter().map(String::as_str).collect();
        let out = format!("out{world_size}");
        let children = start(&trial, &out, &vec![shared; world_size]);
        wait_for_lines(&trial, &out, 2);
        signal(&children[target], "TERM");
        for ended in end(children) {
            ended.assert_success();
        }
        let lines = metrics(&trial, &out);
        assert!(lines.len() == 2 && !lines.iter().any(is_evaluation), "{lines:?}");
        let summary = fs::read_to_string(trial.path(&format!("{out}/summary.json"))).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        assert_eq!(
            (summary["status"].as_str(), summary["steps"].as_u64()),
            (Some("interrupted"), Some(2))
        );

        train(&trial, world_size, &out, &resumed);
        let (whole, interrupted) = (metrics(&trial, "whole"), metrics(&trial, &out));
        assert_eq!((whole.len(), interrupted.len()), (5, 5));
        for (whole, interrupted) in whole.iter().zip(&interrupted) {
            for key in ["step", "epoch", "eval_rows", "eval_captions", "eval_exact"] {
                assert_eq!(whole[key], interrupted[key], "{key}");
            }
            for key in ["loss", "eval_loss"] {
                let [whole, interrupted] =
                    [whole, interrupted].map(|line| line[key].as_f64().unwrap_or(0.0));
                assert!((whole - interrupted).abs() <= 1e-5, "{key}: {whole} and {interrupted}");
            }
        }
    }
}
