//! Attempts: all ranks of this machine again when one failed, as often as was asked for.
//!
//! Machines do not speak to each other here. When one's ranks end, the connections of the others'
//! break, so that they end too, and each machine starts its own again; the ranks then meet as they
//! did at first.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::layout::Layout;
use super::ranks::{self, Job, Signals};
use super::{flags, output, setting};

/// What the user asked wrongly is wrong the next time too.
const USAGE_CODE: u8 = 2;
/// The ranks were ended at once, since the user asked a second time: as `vlm` has it.
const ENDED_AT_ONCE: u8 = 130;
/// Between the end of this machine's ranks and their new start, where there are other machines:
/// theirs are gone by then too (ten seconds after they saw ours go), so that no new rank meets an
/// old one.
const SETTLE: Duration = Duration::from_secs(12);
/// What a rank waits for the others is divided by this for the longest such pause: with a short
/// `--timeout-secs` the machines would else keep missing each other.
const PAUSES_A_TIMEOUT: u32 = 3;

/// How a restarted job differs from its first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Not at all.
    AsBefore,
    /// It continues from the newest checkpoint of its out-dir.
    FromNewestCheckpoint,
}

/// Runs the job to its end, over as many attempts as the layout allows; the exit code of the rank
/// that failed first in the last of them.
/// # Errors
/// A program that cannot be started.
pub fn run(job: &Job, layout: &Layout, again: Again, signals: &Signals) -> Result<ExitCode> {
    let mut job = job.clone();
    let mut attempt = 0;
    loop {
        let Some(failure) = ranks::run(&job, layout, attempt, signals)? else {
            return Ok(ExitCode::SUCCESS);
        };
        if signals.count() > 1 {
            output::say("ended at once; what was saved before is as it was");
            return Ok(ExitCode::from(ENDED_AT_ONCE));
        }
        output::say(&format!("error: {failure}"));
        let is_over = failure.code() == USAGE_CODE || signals.count() > 0;
        if is_over || attempt == layout.max_restarts {
            return Ok(ExitCode::from(failure.code()));
        }
        attempt += 1;
        if layout.nnodes > 1 {
            settle(pause(&job.args), signals);
        }
        if again == Again::FromNewestCheckpoint {
            job.args = resumed(job.args);
        }
        if signals.count() > 0 {
            return Ok(ExitCode::from(failure.code()));
        }
        output::say(&format!("restart {attempt} of {}", layout.max_restarts));
    }
}

fn pause(args: &[OsString]) -> Duration {
    let timeout = setting(args, "timeout-secs").and_then(|text| text.to_str()?.parse().ok());
    let timeout = timeout.map_or(Duration::MAX, Duration::from_secs);
    SETTLE.min(timeout / PAUSES_A_TIMEOUT)
}

fn settle(pause: Duration, signals: &Signals) {
    let until = Instant::now() + pause;
    while Instant::now() < until && signals.count() == 0 {
        thread::sleep(Duration::from_millis(50));
    }
}

/// The arguments with `--resume auto`. A checkpoint that the user named stays until the run has
/// written one of its own.
fn resumed(mut args: Vec<OsString>) -> Vec<OsString> {
    let out_dir = setting(&args, "out-dir").unwrap_or_else(|| PathBuf::from("out"));
    let has_own = out_dir.join("checkpoints").is_dir();
    if flags::value(&args, "resume").is_some() && !has_own {
        return args;
    }
    flags::remove(&mut args, "resume");
    args.extend(["--resume".into(), "auto".into()]);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn machines_with_a_short_timeout_pause_for_less() {
        assert_eq!(pause(&words("pretrain --epochs 2")), SETTLE);
        assert_eq!(pause(&words("pretrain --timeout-secs 600")), SETTLE);
        assert_eq!(pause(&words("pretrain --timeout_secs=6")), Duration::from_secs(2));
    }

    #[test]
    fn restarted_run_continues_from_its_own_newest_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let given = |more: &str| words(&format!("pretrain --out-dir {} {more}", out.display()));
        assert_eq!(resumed(given("")), given("--resume auto"));
        assert_eq!(resumed(given("--resume other/step-1")), given("--resume other/step-1"));
        std::fs::create_dir_all(out.join("checkpoints")).unwrap();
        assert_eq!(resumed(given("--resume other/step-1")), given("--resume auto"));
        assert_eq!(resumed(given("--resume=other/step-1")), given("--resume auto"));
    }
}
