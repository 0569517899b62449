//! What all faults need: an undisturbed run, one to continue, and what was seen.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::outcome::Outcome;
use super::random::Random;
use super::trial::{Ended, Results, Running, Trial, wait_for_lines};
/// What a continued run must do.
pub const IDENTICAL: &str = "continued run identical to an undisturbed one";
/// Steps of a run that is then damaged or continued: it has the checkpoints of steps 5 and 6.
const HALF: [&str; 2] = ["--max-steps", "6"];

/// What the faults need.
pub struct Lab<'a> {
    pub trial: &'a Trial,
    pub random: &'a mut Random,
    /// The results of an undisturbed run.
    pub reference: Results,
    /// The folder of a run that was stopped after [`HALF`].
    pub half: PathBuf,
    /// Number of runs that were started.
    num_runs: usize,
}

/// What was seen of one fault.
pub struct Watch {
    fault: &'static str,
    expected: &'static str,
    seen: BTreeMap<String, usize>,
    broken: Option<String>,
}

impl Watch {
    pub fn new(fault: &'static str, expected: &'static str) -> Self {
        Self { fault, expected, seen: BTreeMap::new(), broken: None }
    }

    /// Records what happened once, and whether it is what must happen.
    pub fn see(&mut self, is_kept: bool, what: impl Into<String>) {
        let what = what.into();
        if !is_kept && self.broken.is_none() {
            self.broken = Some(what.clone());
        }
        *self.seen.entry(if is_kept { what } else { "BROKEN".into() }).or_default() += 1;
    }

    /// The line of the table.
    pub fn outcome(self) -> Vec<Outcome> {
        let seen: Vec<String> =
            self.seen.iter().map(|(what, times)| format!("{times} × {what}")).collect();
        let seen = self
            .broken
            .as_ref()
            .map_or(seen.join(", "), |broken| format!("{}: {broken}", seen.join(", ")));
        let times = self.seen.values().sum();
        let (fault, is_kept) = (self.fault.to_owned(), self.broken.is_none());
        vec![Outcome { fault, times, expected: self.expected, seen, is_kept }]
    }
}

impl<'a> Lab<'a> {
    /// Makes an undisturbed run, and one that is stopped after [`HALF`].
    pub fn prepare(trial: &'a Trial, random: &'a mut Random) -> Result<Self> {
        let half = trial.path("half");
        let ended = trial.train(&half, &HALF)?;
        anyhow::ensure!(ended.code() == Some(0), "the first run fails: {}", ended.log);
        let reference = trial.reference("reference", 1, &[])?;
        Ok(Self { trial, random, reference, half, num_runs: 0 })
    }
}

impl Lab<'_> {
    /// The path of an out-dir that does not exist yet.
    pub fn new_out(&mut self) -> PathBuf {
        self.num_runs += 1;
        self.trial.path(&format!("run-{}", self.num_runs))
    }

    /// A copy of the folder of the run that was stopped after [`HALF`].
    pub fn half_run(&mut self) -> Result<PathBuf> {
        let out = self.new_out();
        copy_folder(&self.half, &out)?;
        Ok(out)
    }

    /// Continues the run in `out`. Returns whether it then equals an undisturbed one, and what
    /// happened.
    pub fn resume(&self, out: &Path, more: &[&str]) -> Result<(bool, String)> {
        let ended = self.trial.train(out, &[&["--resume", "auto"], more].concat())?;
        self.compare(out, &ended)
    }

    /// Whether a run finished and equals an undisturbed one, and what happened.
    pub fn compare(&self, out: &Path, ended: &Ended) -> Result<(bool, String)> {
        if ended.code() != Some(0) {
            return Ok((false, ended.describe()));
        }
        let difference = Results::of(out)?.difference(&self.reference);
        Ok((difference.is_none(), difference.unwrap_or_else(|| "identical".into())))
    }

    /// Starts a run and waits for its first steps.
    pub fn started(&self, out: &Path, more: &[&str]) -> Result<Running> {
        let mut running = self.trial.start(self.trial.pretrain(out, 1, more))?;
        wait_for_lines(&mut running, out, 3)?;
        Ok(running)
    }
}

/// Copies a folder with all its files.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (from, to) = (entry?.path(), to);
        let to = to.join(from.file_name().unwrap_or_default());
        if from.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        }
    }
    Ok(())
}

/// A command of this program.
pub fn xtask() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.stdin(Stdio::null());
    Ok(command)
}
