//! Starts all ranks of this machine again after a failure, up to the requested number of times.
//!
//! The launchers of different machines do not communicate. When the ranks of one machine end, the
//! ranks of the others lose their connections and fail too, and every machine restarts its own. The
//! ranks then connect to each other as at the first start.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::layout::Layout;
use super::ranks::{self, Job, Signals};
use super::settings::setting;
use super::{flags, output};

/// Exit code of a usage error, which a restart would only repeat.
const USAGE_CODE: u8 = 2;
/// Exit code after a second request to stop, the same as that of `vlm`.
const STOPPED_CODE: u8 = 130;
/// Pause before a restart with several machines. The ranks of the other machines have ended by then
/// (within ten seconds after they lost the connection), so that no new rank connects to an old one.
const RESTART_PAUSE: Duration = Duration::from_secs(12);
/// The pause is at most the timeout divided by this number. Otherwise, with a short
/// `--timeout-secs`, ranks could give up waiting while another machine still pauses.
const PAUSES_PER_TIMEOUT: u32 = 3;

/// The command of a restarted job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartMode {
    /// The same command as at the first start.
    SameCommand,
    /// The same command with `--resume auto`: it continues from the newest checkpoint of its
    /// out-dir.
    ResumeNewest,
}

/// Runs the job, with as many restarts as the layout allows. Returns success, or the exit code of
/// the rank that failed first in the last attempt.
///
/// # Errors
/// A program that cannot be started.
pub fn run(job: &Job, layout: &Layout, mode: RestartMode, signals: &Signals) -> Result<ExitCode> {
    let mut job = job.clone();
    let mut attempt = 0;
    loop {
        let Some(failure) = ranks::run(&job, layout, attempt, signals)? else {
            return Ok(ExitCode::SUCCESS);
        };
        if signals.count() > 1 {
            output::print_line("ended at once; earlier checkpoints are unaffected");
            return Ok(ExitCode::from(STOPPED_CODE));
        }
        output::print_line(&format!("error: {failure}"));
        let is_final = failure.code() == USAGE_CODE || signals.count() > 0;
        if is_final || attempt == layout.max_restarts {
            return Ok(ExitCode::from(failure.code()));
        }
        attempt += 1;
        if layout.nnodes > 1 {
            wait(pause(&job.args), signals);
        }
        if mode == RestartMode::ResumeNewest {
            job.args = resumed(job.args);
        }
        if signals.count() > 0 {
            return Ok(ExitCode::from(failure.code()));
        }
        output::print_line(&format!("restart {attempt} of {}", layout.max_restarts));
    }
}

/// Pause before a restart with several machines.
fn pause(args: &[OsString]) -> Duration {
    let timeout = setting(args, "timeout-secs").and_then(|text| text.to_str()?.parse().ok());
    let timeout = timeout.map_or(Duration::MAX, Duration::from_secs);
    RESTART_PAUSE.min(timeout / PAUSES_PER_TIMEOUT)
}

/// Waits for the duration of `pause`, or until the user asks to stop.
fn wait(pause: Duration, signals: &Signals) {
    let until = Instant::now() + pause;
    while Instant::now() < until && signals.count() == 0 {
        thread::sleep(Duration::from_millis(50));
    }
}

/// The arguments with `--resume auto`. A checkpoint that the user named is kept until the run has
/// written a checkpoint itself.
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
    fn pause_is_shorter_with_a_short_timeout() {
        assert_eq!(pause(&words("pretrain --epochs 2")), RESTART_PAUSE);
        assert_eq!(pause(&words("pretrain --timeout-secs 600")), RESTART_PAUSE);
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
