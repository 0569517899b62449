//! `cargo xtask bench`: measures the speed and memory of data loading and of the training, and
//! compares them with targets.

mod clock;
mod data;
mod dataset;
mod images;
mod rows;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use vlm_display::{Align, Table};

use crate::workspace::Workspace;

/// Subcommands of `cargo xtask bench`.
#[derive(Subcommand)]
pub enum Bench {
    /// Measure image preprocessing, prepare-data and the making of batches
    Data(DataArgs),
    /// Measure the training, and compare it with the reference's own script
    Train(train::TrainArgs),
    /// Make a data set of any size for experiments, with some damaged images if asked
    MakeDataset(dataset::DatasetArgs),
    /// Open a data set, read all its rows, and print the time and memory as JSON
    #[command(hide = true)]
    OpenDataset {
        /// The data set
        dir: PathBuf,
    },
}

/// Flags of `cargo xtask bench data`.
#[derive(Args)]
pub struct DataArgs {
    /// Folder of .jpg files to measure with instead of generated images
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Duration of each measurement in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Python with Pillow and transformers, for the comparison
    #[arg(long, value_name = "PROGRAM", env = "VLM_BENCH_PYTHON", default_value = "python3")]
    python: String,
    /// Number of rows of the data set that is prepared and opened; it is made in a temporary folder
    /// (TMPDIR) and takes about 7 kB per row
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    rows: usize,
    /// Measure only this part; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Folder of the tokenizer [default: the demo's]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Number of threads that make batches
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,
}

/// Parts of `bench data`, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Decoding and preprocessing of images
    Pictures,
    /// prepare-data, and opening its output
    Preparing,
    /// Batches from prepared rows and cached features
    Features,
    /// Fraction of padding in batches
    Padding,
    /// Batches from rows that were not prepared
    Raw,
}

impl DataArgs {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// A table of measurements: what was measured, the result with its unit, and a [`target`] if there
/// is one.
fn table() -> Table {
    Table::new(&[Align::Left, Align::Right, Align::Left])
}

/// The cell of a target.
fn target(target: &str, is_reached: bool) -> String {
    format!("{target}: {}", if is_reached { "reached" } else { "NOT reached" })
}

/// Runs a benchmark and prints its table.
pub fn run(workspace: &Workspace, bench: Bench) -> Result<ExitCode> {
    let table = match bench {
        Bench::Data(args) => data::run(workspace, &args)?,
        Bench::Train(args) => train::run(workspace, &args)?,
        Bench::OpenDataset { dir } => {
            rows::open_and_report(&dir)?;
            return Ok(ExitCode::SUCCESS);
        }
        Bench::MakeDataset(args) => dataset::run(workspace, &args)?,
    };
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}
