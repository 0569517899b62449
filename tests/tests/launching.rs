//! Several processes started by the launcher, and restarts after one is killed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Trial, xtask};

/// Flags of every run here: 8 rows on 2 ranks with 2 rows each give 2 steps per epoch.
const FLAGS: [&str; 6] = ["--batch-size", "2", "--save-interval", "4", "--resume", "auto"];
const RANKS: [&str; 2] = ["--nproc-per-node", "2"];

/// The command that launches `vlm pretrain` on the trial.
pub fn launched(trial: &Trial, flags: &[&str], more: &[&str]) -> Command {
    let vlm = trial.command(&[&FLAGS, more].concat());
    let mut command = Command::new(xtask());
    command.arg("launch").args(flags).arg("--").arg(vlm.get_program()).args(vlm.get_args());
    command.stdout(Stdio::null());
    command
}

/// An uninterrupted run on two ranks.
pub fn uninterrupted(more: &[&str]) -> Trial {
    let trial = Trial::new();
    let output = launched(&trial, &RANKS, more).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    trial
}

/// Checks that both runs logged the same losses at the same steps and have the same weights.
pub fn assert_same_run(a: &Trial, b: &Trial) {
    let losses = |trial: &Trial| -> Vec<(u64, String)> {
        let line =
            |line: &serde_json::Value| (line["step"].as_u64().unwrap(), line["loss"].to_string());
        trial.metrics().iter().map(line).collect()
    };
    assert_eq!(losses(a), losses(b));
    let weights = |trial: &Trial| fs::read(trial.path("out/pretrain_vlm_32.safetensors")).unwrap();
    assert!(weights(a) == weights(b), "the weights differ");
}

/// The last step in the log, or 0 without a step.
pub fn last_step(trial: &Trial) -> u64 {
    let text = fs::read_to_string(trial.path("out/metrics.jsonl")).unwrap_or_default();
    let line = text.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
    line.and_then(|line: serde_json::Value| line["step"].as_u64()).unwrap_or(0)
}

/// Waits until `is_true` returns true, at most `within`.
pub fn wait_until(what: &str, within: Duration, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The running child processes of `parent`.
fn children(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        // The name, in parentheses, may have any characters; state and parent follow it.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        let mut fields = after.split(' ');
        fields.next() != Some("Z") && fields.next() == Some(&parent.to_string())
    };
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut children: Vec<u32> = pids.filter(is_child).collect();
    children.sort_unstable();
    children
}

/// A run in which `kills` random ranks are killed with SIGKILL, each a few random steps after the
/// run has recovered from the kill before.
fn run_with_kills(kills: usize, max_restarts: &str, mut seed: u64, more: &[&str]) -> Trial {
    let trial = Trial::new();
    let flags = [&RANKS[..], &["--max-restarts", max_restarts]].concat();
    let log = fs::File::create(trial.path("launcher.log")).unwrap();
    let mut launcher: Child = launched(&trial, &flags, more).stderr(log).spawn().unwrap();
    let log_text = || fs::read_to_string(trial.path("launcher.log")).unwrap();
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for kill in 0..kills {
        let target = last_step(&trial) + 1 + random(7);
        wait_until(&format!("step {target} before kill {kill}"), Duration::from_secs(120), || {
            let ended = launcher.try_wait().unwrap();
            assert_eq!(ended, None, "the run ended before kill {kill}:\n{}", log_text());
            last_step(&trial) >= target
        });
        let ranks = children(launcher.id());
        let rank = ranks[random(ranks.len() as u64) as usize];
        // The rank may have ended already for another reason.
        let _ = Command::new("kill").args(["-9", &rank.to_string()]).status().unwrap();
        wait_until("end of the killed rank", Duration::from_secs(20), || {
            !Path::new(&format!("/proc/{rank}")).exists()
        });
    }
    let status = launcher.wait().unwrap();
    assert!(status.success(), "{status}:\n{}", log_text());
    assert_eq!(log_text().matches("failed first (signal: 9").count(), kills, "{}", log_text());
    trial
}

#[test]
fn run_with_a_killed_rank_equals_an_uninterrupted_run() {
    let more = ["--epochs", "12"];
    assert_same_run(&uninterrupted(&more), &run_with_kills(1, "2", 7, &more));
}

/// Takes more than a minute: `cargo xtask test -- --ignored twenty`.
#[test]
#[ignore = "takes some minutes"]
fn run_with_twenty_killed_ranks_equals_an_uninterrupted_run() {
    let more = ["--epochs", "80"];
    assert_same_run(&uninterrupted(&more), &run_with_kills(20, "20", 20, &more));
}

#[test]
fn usage_error_on_all_ranks_ends_with_code_2_without_a_restart() {
    let trial = Trial::new();
    let flags = [&RANKS[..], &["--max-restarts", "3"]].concat();
    let mut command = launched(&trial, &flags, &["--data-path", "no/such.jsonl"]);
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("no/such.jsonl") && !stderr.contains("restart 1"), "{stderr}");
}
