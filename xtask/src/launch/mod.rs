//! Builds the program `vlm` and starts it: either as a single process, which replaces this one, or
//! as one process per rank, which this one supervises. The communication between ranks is no part
//! of this.

mod binary;
mod cores;
mod flags;
mod layout;
mod output;
mod ranks;
mod restart;
mod settings;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::workspace::{DATA_DIR_VARIABLE, Workspace};
use crate::{demo, setup};

pub use binary::{build_vlm, build_vlm_with};
use ranks::{Job, Signals};
use settings::setting;

/// Runs a training command of `vlm` (`cargo xtask pretrain`, `cargo xtask sft`) with the number of
/// processes that the launch flags give. With `has_demo` the command trains on the demo if no data
/// set is given.
pub fn train(
    workspace: &Workspace,
    command: &str,
    has_demo: bool,
    args: Vec<OsString>,
) -> Result<ExitCode> {
    let (flags, args) = flags::split(args)?;
    let layout = flags.layout()?;
    setup::ensure(workspace)?;
    let binary = build_vlm(workspace)?;
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        let status = Command::new(&binary).arg(command).args(args).status();
        let status = status.with_context(|| format!("starting {}", binary.display()))?;
        println!("{}", flags::HELP);
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if has_demo && trains_on_the_demo(&args) {
        demo::ensure(workspace)?;
    }
    if layout.is_one_process() {
        return exec_vlm(workspace, &binary, Some(command), args);
    }
    let job = Job {
        program: binary,
        args: std::iter::once(command.into()).chain(args).collect(),
        env: vec![
            (DATA_DIR_VARIABLE.into(), workspace.data_dir().into()),
            (LAUNCHED_VARIABLE.into(), unix_seconds().to_string().into()),
        ],
    };
    restart::run(&job, &layout, restart::RestartMode::ResumeNewest, &Signals::listen()?)
}

/// Builds `vlm` and runs a command of it. `args` are passed on unchanged; without `command` they
/// start with the command.
pub fn vlm(workspace: &Workspace, command: Option<&str>, args: Vec<OsString>) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let binary = build_vlm(workspace)?;
    exec_vlm(workspace, &binary, command, args)
}

/// Environment variable that gives `vlm` the time at which the run was launched, in seconds since
/// 1970: a restarted run has the time limit of the first start.
const LAUNCHED_VARIABLE: &str = "VLM_LAUNCHED_AT";

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `cargo xtask launch`: runs any program that reads torchrun's environment variables, one process
/// per rank. A restart repeats the same command.
pub fn program(args: Vec<OsString>) -> Result<ExitCode> {
    if args.first().is_some_and(|arg| arg == "--help" || arg == "-h") {
        println!("Usage: cargo xtask launch [FLAGS] PROGRAM [ARGUMENTS]\n{}", flags::HELP);
        return Ok(ExitCode::SUCCESS);
    }
    let (flags, program, args) = flags::split_before_program(args)?;
    let layout = flags.layout()?;
    let job = Job { program, args, env: Vec::new() };
    restart::run(&job, &layout, restart::RestartMode::SameCommand, &Signals::listen()?)
}

/// Replaces this process by `vlm`; returns only if that fails.
fn exec_vlm(
    workspace: &Workspace,
    binary: &Path,
    command: Option<&str>,
    args: Vec<OsString>,
) -> Result<ExitCode> {
    let error = Command::new(binary)
        .args(command)
        .args(args)
        .env(DATA_DIR_VARIABLE, workspace.data_dir())
        .env("VLM_PROGRAM_NAME", "cargo xtask vlm")
        .exec();
    Err(error).with_context(|| format!("starting {}", binary.display()))
}

/// Whether neither the command line nor the file of `--config` names a data set.
fn trains_on_the_demo(args: &[OsString]) -> bool {
    setting(args, "data-path").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn demo_is_used_only_if_no_data_is_named() {
        assert!(trains_on_the_demo(&words("--epochs 1")));
        assert!(!trains_on_the_demo(&words("--data_path=x.jsonl")));
        assert!(!trains_on_the_demo(&words("--data-path x.jsonl")));
    }

    #[test]
    fn configuration_may_name_the_data() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let args = [OsString::from("--config"), file.path().into()];
        for (text, name, expected) in [
            ("epochs = 1\n  data-path = \"x\"\n", "data-path", Some("x")),
            ("data_path=['x', 'y']", "data-path", Some("x")),
            ("[run]\nout_dir = 'there'", "out-dir", Some("there")),
            ("# data-path = \"x\"\nepochs = 1\n", "data-path", None),
        ] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(setting(&args, name).as_deref(), expected.map(Path::new), "{text}");
        }
    }
}
