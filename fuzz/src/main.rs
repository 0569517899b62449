//! The driver on stable Rust: calls each target with mutated seeds. A child process executes them,
//! so that a stack overflow, an abort or an input that does not end is a finding, too. `cargo xtask
//! fuzz` builds and starts this program.

mod allocator;
mod args;
mod child;
mod inputs;
mod parent;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use args::{ChildArgs, RunArgs};

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

fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    let result = match command {
        Some(Command::Child(args)) => child::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Replay { target, input }) => child::replay(&target, &input),
        Some(Command::Corpus) => inputs::write_corpus().map(|()| ExitCode::SUCCESS),
        None => parent::run(&run),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
