//! `cargo xtask bench`: what things cost on this machine, beside what they must not cost more than.

mod clock;
mod data;
mod dataset;
mod pictures;
mod rows;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use crate::workspace::Workspace;

/// What to measure.
#[derive(Subcommand)]
pub enum Bench {
    /// Pictures and rows to batches
    Data(DataArgs),
    /// Make a data set of any size to try things with, parts of it damaged
    MakeDataset(dataset::DatasetArgs),
    /// Open a data set, read all its rows, and print as JSON what that took
    #[command(hide = true)]
    OpenDataset {
        /// Folder that prepare-data made
        dir: PathBuf,
    },
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
    /// Rows of the data set that is prepared and opened; it is made in a temporary folder (TMPDIR),
    /// about 7 kB a row
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    rows: usize,
    /// Measure only this (several times for several)
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Folder of the tokenizer to measure rows with [default: the demo's]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Threads that make batches
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,
}

/// What `bench data` measures, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Decoding and preprocessing pictures
    Pictures,
    /// prepare-data, and opening what it made
    Preparing,
    /// Prepared rows and cached features to batches
    Features,
    /// The share of padding
    Padding,
    /// Rows as they are published to batches
    Raw,
}

impl DataArgs {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Runs a benchmark and prints its table.
pub fn run(workspace: &Workspace, bench: Bench) -> Result<ExitCode> {
    let table = match bench {
        Bench::Data(args) => data::run(workspace, &args)?,
        Bench::OpenDataset { dir } => {
            rows::open_and_tell(&dir)?;
            return Ok(ExitCode::SUCCESS);
        }
        Bench::MakeDataset(args) => dataset::run(workspace, &args)?,
    };
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}
