//! `cargo xtask bench`: what things cost on this machine, beside what they must not cost more than.

mod clock;
mod data;
mod dataset;
mod pictures;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::workspace::Workspace;

/// What to measure.
#[derive(Subcommand)]
pub enum Bench {
    /// Pictures and rows to batches
    Data(DataArgs),
    /// Make a data set of any size to try things with, parts of it damaged
    MakeDataset(dataset::DatasetArgs),
}

/// Flags of `cargo xtask bench data`.
#[derive(Args)]
pub struct DataArgs {
    /// Folder of .jpg files to measure with instead of drawn ones
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Seconds for each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// A Python with Pillow and transformers to compare with
    #[arg(long, value_name = "PROGRAM", env = "VLM_BENCH_PYTHON", default_value = "python3")]
    python: String,
}

/// Runs a benchmark and prints its table.
pub fn run(workspace: &Workspace, bench: Bench) -> Result<ExitCode> {
    let table = match bench {
        Bench::Data(args) => data::run(workspace, &args)?,
        Bench::MakeDataset(args) => dataset::run(workspace, &args)?,
    };
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}
