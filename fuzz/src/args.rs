//! Flags of the driver and of its child processes.

use std::path::PathBuf;

use clap::Args;

/// Flags of the driver.
#[derive(Args)]
pub struct RunArgs {
    /// Run only this target; may be given several times [default: all]
    #[arg(long)]
    pub target: Vec<String>,
    /// Seconds for each target
    #[arg(long, conflicts_with = "executions")]
    pub seconds: Option<u64>,
    /// Number of executions of each target [default: 1000]
    #[arg(long)]
    pub executions: Option<u64>,
    /// Number from which the inputs are made
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Number of the first execution
    #[arg(long, default_value_t = 0)]
    pub first: u64,
    /// List the targets and do nothing else
    #[arg(long)]
    pub list: bool,
}

/// Flags of a child process.
#[derive(Args)]
pub struct ChildArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// File in which the number of the current execution is kept
    #[arg(long)]
    pub state: PathBuf,
    /// Folder for inputs that are findings
    #[arg(long)]
    pub artifacts: PathBuf,
}
