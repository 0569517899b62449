//! The driver on stable Rust: calls each target with mutated seeds. A child process executes them,
//! so that a stack overflow, an abort or an input that does not end is a finding, too. `cargo xtask
//! fuzz` builds and starts this program.

mod child;
mod parent;

use std::path::PathBuf;
use std::process::ExitCode;

use cap::Cap;
use clap::{Args, Parser, Subcommand};

/// Counts the bytes that are in use, so that an input that makes a reader allocate far more than it
/// has bytes is a finding.
#[global_allocator]
static ALLOCATOR: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

#[derive(Parser)]
#[command(bin_name = "cargo xtask fuzz", about = "Run the readers on mutated files")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Execute inputs in this process; used by the driver
    #[command(hide = true)]
    Child(ChildArgs),
    /// Read one file with a target, such as a finding
    Replay {
        /// Name of the target
        target: String,
        /// File with the input
        input: PathBuf,
    },
    /// Write the seeds into fuzz/corpus, for `cargo fuzz`
    Corpus,
}

#[derive(Args)]
struct RunArgs {
    /// Run only this target; may be given several times [default: all]
    #[arg(long)]
    target: Vec<String>,
    /// Seconds for each target
    #[arg(long, conflicts_with = "executions")]
    seconds: Option<u64>,
    /// Number of executions of each target [default: 1000]
    #[arg(long)]
    executions: Option<u64>,
    /// Number from which the inputs are made
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of the first execution
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// List the targets and do nothing else
    #[arg(long)]
    list: bool,
}

#[derive(Args)]
struct ChildArgs {
    #[command(flatten)]
    run: RunArgs,
    /// File in which the number of the current execution is kept
    #[arg(long)]
    state: PathBuf,
    /// Folder for inputs that are findings
    #[arg(long)]
    artifacts: PathBuf,
}

fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    let result = match command {
        Some(Command::Child(args)) => child::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Replay { target, input }) => child::replay(&target, &input),
        Some(Command::Corpus) => parent::write_corpus().map(|()| ExitCode::SUCCESS),
        None => parent::run(&run),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
