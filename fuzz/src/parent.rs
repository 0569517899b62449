//! Starts a child for each target, and again behind each input that ended one.

use std::fs;
use std::io::{Read, Seek};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use vlm_fuzz::{mutate, targets};

use crate::args::RunArgs;
use crate::child::TOO_SLOW;
use crate::inputs::{find, folder, save, seeds_of};

/// A target is given up after this many inputs that ended its process.
const MAX_ENDED: usize = 20;

/// Runs the targets one after another. The exit code is 1 if there is a finding.
///
/// # Errors
/// An unknown target; a child that cannot be started.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let all = targets().into_iter().map(|target| target.name);
    if args.list {
        all.for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.target {
        find(name)?;
    }
    let names = all.filter(|name| args.target.is_empty() || args.target.iter().any(|t| t == name));
    let (mut findings, mut executions) = (0, 0);
    for name in names {
        let of_target = run_target(name, args)?;
        findings += of_target.0;
        executions += of_target.1;
    }
    println!("{executions} executions, {findings} findings");
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The number of findings and of executions.
fn run_target(name: &str, args: &RunArgs) -> Result<(usize, u64)> {
    let target = find(name)?;
    let seeds = seeds_of(&target);
    let scratch = tempfile::tempdir().context("creating a temporary folder")?;
    let state = scratch.path().join("state");
    let artifacts = folder().join("artifacts");
    let start = Instant::now();
    let last = match (args.seconds, args.executions) {
        (Some(_), _) => u64::MAX,
        (None, executions) => args.first.saturating_add(executions.unwrap_or(1000)),
    };
    let (mut first, mut findings) = (args.first, 0);
    while first < last && findings < MAX_ENDED {
        fs::write(&state, [0; 16])?;
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["child", "--target", name, "--seed", &args.seed.to_string()]);
        child.args(["--first", &first.to_string()]);
        child.arg("--state").arg(&state).arg("--artifacts").arg(&artifacts);
        child.env("TMPDIR", scratch.path());
        match args.seconds.map(|seconds| seconds.saturating_sub(start.elapsed().as_secs())) {
            Some(0) => break,
            Some(left) => child.args(["--seconds", &left.to_string()]),
            None => child.args(["--executions", &(last - first).to_string()]),
        };
        let errors = tempfile::tempfile()?;
        let status = child.stderr(errors.try_clone()?).status().context("starting a child")?;
        let state = fs::read(&state)?;
        let number = |at: usize| {
            state.get(at..at + 8).and_then(|n| n.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        first = number(0).max(first);
        if status.success() {
            findings += number(8) as usize;
            break;
        }
        if status.code() == Some(2) {
            bail!("{name}: the child failed: {}", tail(errors)?);
        }
        let input = mutate::input(&seeds, target.dictionary, args.seed, first);
        let path = save(&artifacts, name, &input)?;
        let what = match status.code() {
            Some(TOO_SLOW) => "takes too long".to_owned(),
            _ => format!("the process ended ({status}): {}", tail(errors)?),
        };
        println!("{name}: {what}\n  input: {} (execution {first})", path.display());
        findings += 1;
        first += 1;
    }
    let (executions, seconds) = (first - args.first, start.elapsed().as_secs_f64());
    println!(
        "{name}: {executions} executions in {seconds:.1} s ({:.0} a second), {findings} findings",
        executions as f64 / seconds
    );
    Ok((findings, executions))
}

/// The last line that the child wrote.
fn tail(mut errors: fs::File) -> Result<String> {
    let mut bytes = Vec::new();
    errors.rewind()?;
    errors.read_to_end(&mut bytes)?;
    // What a damaged input makes a library print need not be text.
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim_end().lines().last().unwrap_or("no message").to_owned())
}
