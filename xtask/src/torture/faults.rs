//! The faults: what is done to a run, and what must happen.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::damage;
use super::disk::{Disk, Frozen, limited};
use super::lab::{Lab, Watch, copy_folder};
use super::outcome::Outcome;
use super::random::Random;
use super::trial::{
    Ended, LIMIT, NUM_ROWS, POLL_INTERVAL, Running, Trial, newest_checkpoint, wait_for_lines,
};
use crate::sys::{self, Signal};

/// What a run must do that cannot continue.
const FAILS: &str = "exit 1 with the reason; then identical";
/// A run that does not end by itself.
const ENDLESS: [&str; 2] = ["--epochs", "100000"];
/// Words of which each message about too little memory has one.
const MEMORY: [&str; 4] = ["memory", "allocate", "failed to map segment", "resource"];

/// A fault: its name for `--only`, and the function that tries it.
type Fault = (&'static str, fn(&mut Lab) -> Result<Vec<Outcome>>);

const FAULTS: [Fault; 16] = [
    ("full disk", full_disk),
    ("file size", small_files),
    ("read-only", read_only),
    ("damaged checkpoint", damage::checkpoints),
    ("damaged shards", damage::shards),
    ("damaged features", damage::features),
    ("removed out-dir", removed_out_dir),
    ("replaced data", replaced_data),
    ("stopped process", stopped_process),
    ("stopped rank", stopped_rank),
    ("closed pipes", closed_pipes),
    ("open files", few_open_files),
    ("memory limit", little_memory),
    ("request to save", request_to_save),
    ("request to stop", request_to_stop),
    ("time limit", time_limit),
];

/// Tries the faults whose name contains one of `only`.
pub fn run(trial: &Trial, only: &[String], random: &mut Random) -> Result<Vec<Outcome>> {
    let mut lab = Lab::prepare(trial, random)?;
    let mut outcomes = Vec::new();
    for (name, fault) in FAULTS {
        if only.is_empty() || only.iter().any(|part| name.contains(part.as_str())) {
            let started = Instant::now();
            let found = fault(&mut lab).with_context(|| name.to_owned())?;
            for outcome in found.iter().filter(|outcome| !outcome.is_kept) {
                eprintln!("broken: {}: {}", outcome.fault, outcome.seen);
            }
            outcomes.extend(found);
            eprintln!("{name}: {:.0} s", started.elapsed().as_secs_f64());
        }
    }
    Ok(outcomes)
}

fn full_disk(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("disk full (small tmpfs)", FAILS);
    for kilobytes in [4, 16, 64, 256, 512, 900, 1_200, 1_600, 2_000] {
        let root = lab.new_out();
        let disk = Disk::create(&root, kilobytes << 10)?;
        if !disk.is_mounted() {
            watch.see(true, "not tried: this user may not mount file systems");
            break;
        }
        let out = root.join("out");
        let ended = lab.trial.train(&out, &[])?;
        let is_right =
            ended.code() == Some(0) || ended.code() == Some(1) && ended.names(&["No space"]);
        disk.remount("size=64m")?;
        let (is_same, what) = lab.resume(&out, &[])?;
        let first = if is_right {
            format!("exit {}", ended.code().unwrap_or(-1))
        } else {
            ended.describe()
        };
        watch.see(is_right && is_same, format!("{first}, then {what}"));
    }
    Ok(watch.outcome())
}

fn small_files(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("files limited (ulimit -f)", FAILS);
    for blocks in [0, 1, 8, 64, 300, 550] {
        let out = lab.new_out();
        let run = lab.trial.pretrain(&out, 1, &[]);
        let ended = lab.trial.run(limited(&run, &format!("ulimit -f {blocks}")))?;
        let is_right = ended.code() == Some(1) && ended.names(&["File too large"]);
        let (is_same, what) = lab.resume(&out, &[])?;
        let first = if is_right { "exit 1".into() } else { ended.describe() };
        watch.see(is_right && is_same, format!("{first}, then {what}"));
    }
    let mut outcomes = watch.outcome();
    let mut watch = Watch::new(
        "saves fail with --on-save-error continue",
        "all steps, a warning for each, exit 1",
    );
    let out = lab.new_out();
    let run = lab.trial.pretrain(&out, 1, &["--on-save-error", "continue"]);
    let ended = lab.trial.run(limited(&run, "ulimit -f 300"))?;
    let warnings = ended.log.matches("--on-save-error is continue").count();
    let steps = super::trial::lines(&out);
    let is_right = ended.code() == Some(1) && warnings + 1 == steps && steps == 30;
    let what = format!("{steps} steps, {warnings} warnings");
    let how = if is_right { "exit 1".into() } else { ended.describe() };
    watch.see(is_right, format!("{what}, {how}"));
    outcomes.extend(watch.outcome());
    Ok(outcomes)
}

fn read_only(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("read-only folder, at the start", "exit 2 with its name");
    let root = lab.new_out();
    let disk = Disk::create(&root, 64 << 20)?;
    if !disk.is_mounted() {
        // Root may write to any folder, but may mount file systems, too.
        let mut permissions = fs::metadata(&root)?.permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&root, permissions)?;
    }
    disk.remount("ro")?;
    let out = root.join("out");
    let ended = lab.trial.train(&out, &[])?;
    let is_right = ended.code() == Some(2) && ended.names(&["--out-dir"]);
    watch.see(is_right, if is_right { "exit 2".into() } else { ended.describe() });
    let mut outcomes = watch.outcome();
    if disk.is_mounted() {
        let mut watch = Watch::new("file system read-only when a run is continued", FAILS);
        disk.remount("rw")?;
        copy_folder(&lab.half, &out)?;
        disk.remount("ro")?;
        let ended = lab.trial.train(&out, &["--resume", "auto"])?;
        let is_right = ended.code() == Some(1) && ended.names(&["Read-only"]);
        disk.remount("rw")?;
        let (is_same, what) = lab.resume(&out, &[])?;
        let first = if is_right { "exit 1".into() } else { ended.describe() };
        watch.see(is_right && is_same, format!("{first}, then {what}"));
        outcomes.extend(watch.outcome());
    }
    outcomes.extend(read_only_during_a_run(lab)?);
    Ok(outcomes)
}

fn read_only_during_a_run(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("out-dir read-only during a run", FAILS);
    for _ in 0..3 {
        let out = lab.new_out();
        let running = lab.started(&out, &[])?;
        let Some(frozen) = Frozen::new(&[&out, &out.join("checkpoints")]) else {
            watch.see(true, "not tried: neither chattr +i nor chmod a-w binds this user");
            break;
        };
        let ended = running.wait()?;
        drop(frozen);
        let reasons = ["Operation not permitted", "Permission denied"];
        let is_right = ended.code() == Some(1) && ended.names(&reasons);
        let (is_same, what) = lab.resume(&out, &[])?;
        let first = if is_right { "exit 1".into() } else { ended.describe() };
        watch.see(is_right && is_same, format!("{first}, then {what}"));
    }
    Ok(watch.outcome())
}

fn removed_out_dir(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("out-dir removed or moved during a run", "exit 1 with the reason");
    for moves in [false, true, false] {
        let out = lab.new_out();
        let running = lab.started(&out, &ENDLESS)?;
        std::thread::sleep(Duration::from_millis(lab.random.below(200) as u64));
        if moves {
            fs::rename(&out, lab.trial.path("moved"))?;
        } else {
            // The run may write a file into a folder that is just being removed.
            let until = Instant::now() + LIMIT;
            while fs::remove_dir_all(&out).is_err() && out.exists() && Instant::now() < until {}
        }
        let ended = running.wait()?;
        let is_right = ended.code() == Some(1) && ended.names(&["removed", "No such file"]);
        let what = if is_right { "exit 1".into() } else { ended.describe() };
        watch.see(is_right, what);
    }
    Ok(watch.outcome())
}

fn replaced_data(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new(
        "rows replaced before a run is continued",
        "exit 2 with the reason; then identical",
    );
    let out = lab.half_run()?;
    lab.trial.write_rows(NUM_ROWS, "A square")?;
    let ended = lab.trial.train(&out, &["--resume", "auto"])?;
    let is_right = ended.code() == Some(2) && ended.names(&["--data-path"]);
    lab.trial.write_rows(NUM_ROWS, "A circle")?;
    let (is_same, what) = lab.resume(&out, &[])?;
    let first = if is_right { "exit 2".into() } else { ended.describe() };
    watch.see(is_right && is_same, format!("{first}, then {what}"));
    Ok(watch.outcome())
}

fn stopped_process(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("SIGSTOP and SIGCONT", "identical to an undisturbed run");
    let out = lab.new_out();
    let mut running = lab.started(&out, &[])?;
    for _ in 0..5 {
        running.signal(Signal::Stop);
        std::thread::sleep(Duration::from_millis(100));
        running.signal(Signal::Continue);
        std::thread::sleep(Duration::from_millis(20));
    }
    running.is_alive()?;
    let ended = running.wait()?;
    let (is_same, what) = lab.compare(&out, &ended)?;
    watch.see(is_same, what);
    Ok(watch.outcome())
}

fn stopped_rank(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new(
        "one of two ranks stopped (SIGSTOP) for longer than --timeout-secs",
        "the other one: exit 1 with the rank's number",
    );
    let out = lab.new_out();
    let flags = [&ENDLESS[..], &["--timeout-secs", "5"]].concat();
    let mut running = lab.trial.start_ranks(&out, 2, &flags)?;
    wait_for_lines(&mut running, &out, 3)?;
    sys::signal_group(running.ranks[1].id(), Signal::Stop);
    let stopped = running.ranks.pop().context("two ranks")?;
    let ended = running.wait()?;
    // Ends it, when dropped.
    drop(Running::of(vec![stopped]));
    let is_right = ended.code() == Some(1) && ended.names(&["rank 1"]);
    watch.see(is_right, if is_right { "exit 1".into() } else { ended.describe() });
    Ok(watch.outcome())
}

fn closed_pipes(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new(
        "standard output and error closed by their reader",
        "identical to an undisturbed run",
    );
    let out = lab.new_out();
    let mut command = lab.trial.pretrain(&out, 1, &[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop((child.stdout.take(), child.stderr.take()));
    let ended = Ended { status: Some(child.wait()?), log: String::new() };
    let (is_same, what) = lab.compare(&out, &ended)?;
    watch.see(is_same, what);
    Ok(watch.outcome())
}

fn few_open_files(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new(
        "few open files (ulimit -n 64 and 20)",
        "identical, or an error with the reason",
    );
    for limit in [64, 20] {
        let out = lab.new_out();
        let run = lab.trial.pretrain(&out, 1, &[]);
        let ended = lab.trial.run(limited(&run, &format!("ulimit -n {limit}")))?;
        let (is_same, what) = lab.compare(&out, &ended)?;
        let is_error = ended.code() != Some(0) && ended.names(&["Too many open files"]);
        watch.see(is_same || is_error, if is_error { "error".into() } else { what });
    }
    Ok(watch.outcome())
}

fn little_memory(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch =
        Watch::new("little memory (ulimit -v)", "identical, or an error that says what needed it");
    let beginnings = (400..460).step_by(5);
    let later = [500, 550, 600, 650, 700, 800, 1_000, 1_400];
    for megabytes in [100, 200, 300, 350].into_iter().chain(beginnings).chain(later) {
        let out = lab.new_out();
        let run = lab.trial.pretrain(&out, 1, &[]);
        let ended = lab.trial.run(limited(&run, &format!("ulimit -v {}", megabytes << 10)))?;
        let (is_same, what) = lab.compare(&out, &ended)?;
        let is_error = ended.code().is_some_and(|code| code != 0) && ended.names(&MEMORY);
        watch.see(
            is_same || is_error,
            if is_error { "error".into() } else { format!("{megabytes} MB: {what}") },
        );
    }
    Ok(watch.outcome())
}

fn request_to_save(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("SIGUSR1", "a checkpoint, and the run continues");
    for ranks in [1, 2] {
        let out = lab.new_out();
        let flags = [&ENDLESS[..], &["--save-interval", "1000000"]].concat();
        let mut running = lab.trial.start_ranks(&out, ranks, &flags)?;
        wait_for_lines(&mut running, &out, 3)?;
        sys::signal_group(running.ranks[ranks - 1].id(), Signal::Save);
        let until = Instant::now() + LIMIT;
        while newest_checkpoint(&out).is_none() && running.is_alive()? && Instant::now() < until {
            std::thread::sleep(POLL_INTERVAL);
        }
        let has_saved = newest_checkpoint(&out).is_some();
        let steps = super::trial::lines(&out);
        wait_for_lines(&mut running, &out, steps + 3)?;
        let continues = running.is_alive()?;
        let is_right = has_saved && continues;
        let what = format!("saved: {has_saved}, continued: {continues}");
        watch.see(is_right, if is_right { "saved and continued".into() } else { what });
    }
    Ok(watch.outcome())
}

fn request_to_stop(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("SIGTERM, then --resume auto", "exit 0, then identical");
    for _ in 0..3 {
        let out = lab.new_out();
        let running = lab.started(&out, &[])?;
        running.signal(Signal::Terminate);
        let ended = running.wait()?;
        let (is_same, what) = lab.resume(&out, &[])?;
        watch.see(ended.code() == Some(0) && is_same, format!("{}, then {what}", ended.describe()));
    }
    Ok(watch.outcome())
}

fn time_limit(lab: &mut Lab) -> Result<Vec<Outcome>> {
    const SECONDS: u64 = 20;
    let mut watch = Watch::new("--time-limit", "exit 0 with a checkpoint within the limit");
    for ranks in [1, 2] {
        let out = lab.new_out();
        let limit = SECONDS.to_string();
        let started = Instant::now();
        let flags = [&ENDLESS[..], &["--time-limit", &limit, "--save-interval", "1000"]].concat();
        let ended = lab.trial.start_ranks(&out, ranks, &flags)?.wait()?;
        let seconds = started.elapsed().as_secs_f64();
        let summary = fs::read_to_string(out.join("summary.json")).unwrap_or_default();
        let is_right = ended.code() == Some(0)
            && seconds < SECONDS as f64
            && newest_checkpoint(&out).is_some()
            && summary.contains("interrupted");
        let what = format!("{} after {seconds:.0} of {SECONDS} s", ended.describe());
        watch.see(is_right, if is_right { "exit 0 within the limit".into() } else { what });
    }
    Ok(watch.outcome())
}
