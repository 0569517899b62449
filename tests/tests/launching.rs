//! Several processes through the launcher, and what happens when one is killed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Trial, xtask};

/// 8 rows over 2 ranks of 2 rows: 2 steps an epoch.
const USUAL: [&str; 6] = ["--batch-size", "2", "--save-interval", "4", "--resume", "auto"];
const RANKS: [&str; 2] = ["--nproc-per-node", "2"];

/// `vlm pretrain` of the trial, once a rank.
pub fn launched(trial: &Trial, flags: &[&str], more: &[&str]) -> Command {
    let vlm = trial.command(&[&USUAL, more].concat());
    let mut command = Command::new(xtask());
    command.arg("launch").args(flags).arg("--").arg(vlm.get_program()).args(vlm.get_args());
    command.stdout(Stdio::null());
    command
}

/// A run on two ranks that nothing disturbs.
pub fn undisturbed(more: &[&str]) -> Trial {
    let trial = Trial::new();
    let output = launched(&trial, &RANKS, more).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    trial
}

/// Fails unless both runs logged the same losses at the same steps, and left the same weights.
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

/// The last step in the log, 0 where there is none.
pub fn last_step(trial: &Trial) -> u64 {
    let text = fs::read_to_string(trial.path("out/metrics.jsonl")).unwrap_or_default();
    let line = text.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
    line.and_then(|line: serde_json::Value| line["step"].as_u64()).unwrap_or(0)
}

/// Waits for something that a run does.
pub fn wait_until(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not in {within:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that `parent` started and that are alive.
fn children(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        // The name in parentheses may hold anything; state and parent follow the last of them.
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

/// Kills `kills` random ranks with SIGKILL, each a few random steps after the run has made up for
/// the one before.
fn disturbed(kills: usize, max_restarts: &str, mut seed: u64, more: &[&str]) -> Trial {
    let trial = Trial::new();
    let flags = [&RANKS[..], &["--max-restarts", max_restarts]].concat();
    let log = fs::File::create(trial.path("launcher.log")).unwrap();
    let mut launcher: Child = launched(&trial, &flags, more).stderr(log).spawn().unwrap();
    let said = || fs::read_to_string(trial.path("launcher.log")).unwrap();
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for kill in 0..kills {
        let target = last_step(&trial) + 1 + random(7);
        wait_until(&format!("step {target} before kill {kill}"), Duration::from_secs(120), || {
            let ended = launcher.try_wait().unwrap();
            assert_eq!(ended, None, "the run ended before kill {kill}:\n{}", said());
            last_step(&trial) >= target
        });
        let ranks = children(launcher.id());
        let rank = ranks[random(ranks.len() as u64) as usize];
        // A rank that has just been ended for another reason is no rank to kill.
        let _ = Command::new("kill").args(["-9", &rank.to_string()]).status().unwrap();
        wait_until("the killed rank's end", Duration::from_secs(20), || {
            !Path::new(&format!("/proc/{rank}")).exists()
        });
    }
    let status = launcher.wait().unwrap();
    assert!(status.success(), "{status}:\n{}", said());
    assert_eq!(said().matches("failed first (signal: 9").count(), kills, "{}", said());
    trial
}

#[test]
fn run_whose_rank_was_killed_and_restarted_equals_an_undisturbed_one() {
    let more = ["--epochs", "12"];
    assert_same_run(&undisturbed(&more), &disturbed(1, "2", 7, &more));
}

/// A minute or more: `cargo xtask test -- --ignored twenty`.
#[test]
#[ignore = "a trial of some minutes"]
fn run_with_twenty_killed_ranks_equals_an_undisturbed_one() {
    let more = ["--epochs", "80"];
    assert_same_run(&undisturbed(&more), &disturbed(20, "20", 20, &more));
}

#[test]
fn wrong_request_on_all_ranks_ends_with_code_2_and_is_not_repeated() {
    let trial = Trial::new();
    let flags = [&RANKS[..], &["--max-restarts", "3"]].concat();
    let mut command = launched(&trial, &flags, &["--data-path", "no/such.jsonl"]);
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("no/such.jsonl") && !stderr.contains("restart 1"), "{stderr}");
}
