//! `cargo xtask torture`: kills and damages small real training runs and compares how they end with
//! what `docs/reliability.md` promises.

mod damage;
mod disk;
mod faults;
mod kills;
mod lab;
mod outcome;
mod random;
mod soak;
mod trial;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use tempfile::TempDir;
use vlm_display::{Align, Table, count};

use crate::launch::build_vlm;
use crate::setup;
use crate::workspace::{Workspace, usage_error};
use outcome::Outcome;
use random::Random;
use trial::Trial;

/// Flags of `cargo xtask torture`.
#[derive(Args)]
pub struct TortureArgs {
    /// Kill training runs this many times at random moments, continue each with --resume auto, and
    /// compare the finished runs with an undisturbed one, byte for byte
    #[arg(long, value_name = "N", default_value_t = 0)]
    kills: usize,
    /// Number of processes of each run that is killed
    #[arg(long, value_name = "N", default_value_t = 1)]
    ranks: usize,
    /// Run with full and read-only disks, damaged files, removed folders, stopped processes, closed
    /// pipes and small limits
    #[arg(long)]
    faults: bool,
    /// Run only the faults whose name contains this text; may be repeated
    #[arg(long, value_name = "TEXT", requires = "faults")]
    only: Vec<String>,
    /// Train for this many steps in 50 epochs, and check that memory, open files and threads stay
    /// the same after the first 500 steps
    #[arg(long, value_name = "STEPS")]
    soak: Option<u64>,
    /// Seed of the moments and places of the damage
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Folder for the temporary files [default: that of the system]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the temporary files
    #[arg(long)]
    keep: bool,
    /// The program to test [default: vlm of this checkout, which is built]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Runs the command. The exit code is 1 if a promise was broken.
pub fn run(workspace: &Workspace, args: &TortureArgs) -> Result<ExitCode> {
    if args.kills == 0 && !args.faults && args.soak.is_none() {
        return Err(usage_error("nothing to do: give --kills N, --faults or --soak STEPS"));
    }
    if args.ranks == 0 {
        return Err(usage_error("--ranks is 0; it must be at least 1"));
    }
    let program = match &args.program {
        Some(program) => std::path::absolute(program)?,
        None => {
            setup::ensure(workspace)?;
            build_vlm(workspace)?
        }
    };
    let folder = temporary_folder(args)?;
    let result = run_in(workspace, args, program, folder.path());
    if args.keep {
        println!("the files are in {}", folder.keep().display());
    }
    result
}

fn temporary_folder(args: &TortureArgs) -> Result<TempDir> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new().prefix("torture-").tempdir_in(&parent);
    folder.with_context(|| format!("making a folder in {}", parent.display()))
}

fn run_in(
    workspace: &Workspace,
    args: &TortureArgs,
    program: PathBuf,
    folder: &Path,
) -> Result<ExitCode> {
    let trial = Trial::create(workspace, program, folder)?;
    let mut random = Random(args.seed);
    let mut outcomes = Vec::new();
    if args.kills > 0 {
        outcomes.extend(kills::run(&trial, args.kills, args.ranks, &mut random)?);
    }
    if args.faults {
        outcomes.extend(faults::run(&trial, &args.only, &mut random)?);
    }
    if !outcomes.is_empty() {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
        table = table.with_head(&["fault", "times", "expected", "seen", "verdict"]);
        for outcome in &outcomes {
            let verdict = if outcome.is_kept { "kept" } else { "BROKEN" };
            let Outcome { fault, times, expected, seen, .. } = outcome;
            table.push(&[fault, times, expected, seen, &verdict]);
        }
        print!("{table}");
    }
    let mut num_broken = outcomes.iter().filter(|outcome| !outcome.is_kept).count();
    if let Some(steps) = args.soak {
        num_broken += usize::from(!soak::run(&trial, steps)?);
    }
    if num_broken == 0 {
        println!("every promise was kept (seed {})", args.seed);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} broken (seed {})", count(num_broken, "promise"), args.seed);
    Ok(ExitCode::FAILURE)
}
