//! The command `vlm`: reads the command line and calls the libraries.

#[macro_use]
mod console;

mod args;
mod board;
mod cache_features;
mod chat;
mod config;
mod configuration;
mod convert;
mod demo;
mod error;
mod eval;
mod exit;
mod flag_values;
mod foreign_flags;
mod generate;
mod generate_rows;
mod init;
mod inputs;
mod inspect;
mod inspect_row;
mod interrupt;
mod log;
mod model_args;
mod openmp_wait;
mod outcome;
mod per_row;
mod pretrain;
mod printed;
mod progress;
mod row_args;
mod row_view;
mod serve;
mod settings_args;
mod shell;
mod short_errors;
mod version;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use vlm_config::with_dashes;

use args::{Cli, Command};

fn main() -> ExitCode {
    exit::report_panics_as_errors();
    vlm_torch::set_operation(c"reading the command");
    let cli =
        Cli::try_parse_from(std::env::args_os().map(with_dashes)).unwrap_or_else(
            |error| match error.kind() {
                ErrorKind::DisplayVersion => version::print(),
                _ => exit::of_usage(foreign_flags::explain(error)),
            },
        );
    log::start(cli.verbose, cli.log_format);
    vlm_torch::set_operation(c"running the command");
    if cli.command.computes() {
        openmp_wait::limit();
    }
    // Before the first use of libtorch, which checks only once whether CUDA is available.
    let cuda = vlm_torch::load_cuda();
    if let Err(error) = cuda {
        tracing::warn!("CUDA is not used: {error}");
    }
    exit::code(exit::with_memory_errors(|| match cli.command {
        Command::Pretrain(args) => pretrain::run(&args.0),
        Command::Sft(args) => pretrain::run(&args.0),
        Command::Config(command) => config::run(command),
        Command::DemoWeights(args) => demo::make_weights(&args),
        Command::CacheFeatures(args) => cache_features::run(args),
        Command::Init(args) => init::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Serve(args) => serve::run(*args),
        Command::Eval(args) => eval::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Board(args) => board::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
    }))
}
