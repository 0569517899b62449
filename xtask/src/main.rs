//! `cargo xtask`: sets up libtorch, prepares data, launches training, runs tests and checks. It
//! builds and runs without libtorch: the program `vlm`, which it builds and starts, does what needs
//! libtorch.

#[macro_use]
#[path = "../../crates/vlm-cli/src/console.rs"]
mod console;
#[path = "../../crates/vlm-cli/src/short_errors.rs"]
mod short_errors;

mod bench;
mod cache;
mod check;
mod cxx;
mod demo;
mod dist;
mod doctor;
mod fake_cuda;
mod flags_page;
mod fuzz;
mod gpu;
mod gpu_check;
mod launch;
mod libtorch;
mod link_farm;
mod nccl;
mod pip;
mod plan;
mod prepare;
mod program;
mod python;
mod run_tests;
mod setup;
mod smoke_test;
#[allow(unsafe_code)]
mod sys;
mod torture;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use libtorch::Flavour;
use workspace::{UsageError, Workspace};

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    version,
    args_override_self = true,
    about = "Set up libtorch, prepare data, train, test and check"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install libtorch and link it into the checkout
    Setup(SetupArgs),
    /// Report what this machine has and whether training can run on it
    Doctor,
    /// Pretrain a model; without --data-path on the embedded demo
    #[command(disable_help_flag = true)]
    Pretrain(Passed),
    /// Fine-tune a pretrained model on instruction data
    #[command(disable_help_flag = true)]
    Sft(Passed),
    /// Check and tokenize a data set and write it as shards; without --input make the demo's data
    /// set
    PrepareData(Box<prepare::PrepareDataArgs>),
    /// Train the demo's starting weights
    #[command(disable_help_flag = true)]
    DemoWeights(Passed),
    /// Start any program as one process per rank, with torchrun's environment variables:
    /// `launch --nproc-per-node 2 PROGRAM`
    #[command(disable_help_flag = true)]
    Launch(Passed),
    /// Estimate time, memory and network traffic of a run: `plan --gpus 8 --gpu h200`
    #[command(disable_help_flag = true)]
    Plan(Passed),
    /// Check training on the GPU of this machine in a few minutes, and write the results to a file
    GpuCheck(gpu_check::GpuCheckArgs),
    /// Run any command of vlm: `cargo xtask vlm generate --help`
    #[command(disable_help_flag = true)]
    Vlm(Passed),
    /// Build everything and run the tests; arguments are passed to `cargo test`. With --fake-cuda
    /// run the tests on a CUDA device without a GPU
    Test(Passed),
    /// Pack the program for machines without Rust: a Python wheel, and a tarball with libtorch
    Dist(dist::DistArgs),
    /// Run every reader of files from outside on mutated files: `fuzz --target parquet --seconds 60`
    #[command(disable_help_flag = true)]
    Fuzz(Passed),
    /// Write the tables of docs/flags.md from the list of settings
    Docs,
    /// Check formatting, the rules of this repository, and lints
    Check,
    /// Kill and damage small training runs, and check that none is lost or changed
    Torture(torture::TortureArgs),
    /// Measure the speed of data loading and of the training on this machine
    #[command(subcommand)]
    Bench(bench::Bench),
}

#[derive(Args)]
struct SetupArgs {
    /// Use libtorch with CUDA [default: if an NVIDIA GPU is found]
    #[arg(long, conflicts_with = "cpu")]
    cuda: bool,
    /// Use libtorch for the CPU only
    #[arg(long)]
    cpu: bool,
    /// Folder of libtorch 2.11.0, or of the torch package of a Python, to use
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
}

#[derive(Args)]
struct Passed {
    /// Arguments that are passed on unchanged
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| match error.kind() {
        ErrorKind::DisplayVersion => {
            println!("{}", version(&Workspace::locate()));
            std::process::exit(0)
        }
        _ => short_errors::shortened(error).exit(),
    });
    match dispatch(cli.command) {
        Ok(code) => match console::failure() {
            Some(failure) => {
                eprintln!("error: {failure}");
                ExitCode::FAILURE
            }
            None => code,
        },
        Err(error) => {
            eprintln!("error: {}", vlm_config::with_flags(&format!("{error:#}")));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

/// The version of this program, the commit of the checkout, and the libtorch that it sets up.
fn version(workspace: &Workspace) -> String {
    let mut git = std::process::Command::new("git");
    git.args(["rev-parse", "--short=10", "HEAD"]).current_dir(workspace.root());
    let commit = program::output_of(&mut git, "git rev-parse").ok();
    let commit = commit.map_or(String::new(), |commit| format!(" (commit {})", commit.trim()));
    format!("xtask {}{commit}\nlibtorch {}", env!("CARGO_PKG_VERSION"), libtorch::VERSION)
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let workspace = &Workspace::locate();
    match command {
        Command::Setup(args) => {
            let flavour = match (args.cuda, args.cpu) {
                (true, _) => Some(Flavour::Cuda),
                (_, true) => Some(Flavour::Cpu),
                _ => None,
            };
            setup::run(workspace, &setup::Request { from: args.from, flavour })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor => doctor::run(workspace),
        Command::Pretrain(passed) => launch::train(workspace, "pretrain", true, passed.args),
        Command::Sft(passed) => launch::train(workspace, "sft", false, passed.args),
        Command::Launch(passed) => launch::program(passed.args),
        Command::GpuCheck(args) => gpu_check::run(workspace, &args),
        Command::Plan(passed) => plan::run(passed.args),
        Command::PrepareData(args) => prepare::run(workspace, *args),
        Command::DemoWeights(passed) => launch::vlm(workspace, Some("demo-weights"), passed.args),
        Command::Vlm(passed) => launch::vlm(workspace, None, passed.args),
        Command::Test(passed) => run_tests::run(workspace, passed.args),
        Command::Fuzz(passed) => fuzz::run(workspace, passed.args),
        Command::Docs => flags_page::write(workspace).map(|()| ExitCode::SUCCESS),
        Command::Dist(args) => dist::run(workspace, &args).map(|()| ExitCode::SUCCESS),
        Command::Check => check::run(workspace),
        Command::Torture(args) => torture::run(workspace, &args),
        Command::Bench(bench) => bench::run(workspace, bench),
    }
}
