//! `cargo xtask`: set-up of libtorch, preparation of data, launch, checks. Builds and runs without
//! libtorch; whatever needs it is done by the program `vlm`, which is built and started here.

#[macro_use]
#[path = "../../crates/vlm-cli/src/console.rs"]
mod console;

mod bench;
mod cache;
mod check;
mod demo;
mod doctor;
mod fake_cuda;
mod flags_page;
mod gpu;
mod launch;
mod libtorch;
mod link_farm;
mod nccl;
mod pip;
mod plan;
mod prepare;
mod proof;
mod python;
mod run_tests;
mod setup;
mod sys;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use libtorch::Flavour;
use workspace::{UsageError, Workspace};

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    args_override_self = true,
    about = "Set-up, data, training, tests and checks"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install libtorch, and link it into the checkout
    Setup(SetupArgs),
    /// Print what this machine has, and whether training can run on it
    Doctor,
    /// Train: the main job, on the embedded demo unless --data-path is given
    #[command(disable_help_flag = true)]
    Pretrain(Passed),
    /// Train on instruction rows, from what pretraining left
    #[command(disable_help_flag = true)]
    Sft(Passed),
    /// Check a data set and make shards of it; without --input the demo's data set
    PrepareData(Box<prepare::PrepareDataArgs>),
    /// Make the demo's starting weights
    #[command(disable_help_flag = true)]
    DemoWeights(Passed),
    /// Start any program once a rank, with torchrun's environment: `launch --nproc-per-node 2 PROGRAM`
    #[command(disable_help_flag = true)]
    Launch(Passed),
    /// Say what a run will cost, in time, memory and bytes: `plan --gpus 8 --gpu h200`
    #[command(disable_help_flag = true)]
    Plan(Passed),
    /// Run any command of vlm: `cargo xtask vlm generate --help`
    #[command(disable_help_flag = true)]
    Vlm(Passed),
    /// Build everything and run the tests; arguments go to `cargo test`. With --fake-cuda the tests on a
    /// CUDA device without a GPU
    Test(Passed),
    /// Write the tables of docs/flags.md from the list of settings
    Docs,
    /// Check format, house rules and lints
    Check,
    /// Measure what things cost on this machine
    #[command(subcommand)]
    Bench(bench::Bench),
}

#[derive(Args)]
struct SetupArgs {
    /// Serve NVIDIA GPUs (the default where their driver is loaded)
    #[arg(long, conflicts_with = "cpu")]
    cuda: bool,
    /// Serve the processor only
    #[arg(long)]
    cpu: bool,
    /// Use the libtorch 2.11.0, or the torch of a Python, in this folder
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
}

#[derive(Args)]
struct Passed {
    /// Passed on word for word
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
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
        Command::Plan(passed) => plan::run(passed.args),
        Command::PrepareData(args) => prepare::run(workspace, *args),
        Command::DemoWeights(passed) => launch::vlm(workspace, Some("demo-weights"), passed.args),
        Command::Vlm(passed) => launch::vlm(workspace, None, passed.args),
        Command::Test(passed) => run_tests::run(workspace, passed.args),
        Command::Docs => flags_page::write(workspace).map(|()| ExitCode::SUCCESS),
        Command::Check => check::run(workspace),
        Command::Bench(bench) => bench::run(workspace, bench),
    }
}
