//! `cargo xtask bench`: measures the speed and memory of data loading and of the training, and
//! compares them with targets.

mod clock;
mod data;
mod data_args;
mod dataset;
mod images;
mod measurements;
mod rows;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::workspace::Workspace;
use data_args::DataArgs;

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
