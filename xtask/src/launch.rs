//! Builds the program `vlm` and becomes it: after `exec` there is one process, so that signals
//! reach it and its exit code is ours.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::launch_flags;
use crate::workspace::{DATA_DIR_VARIABLE, Workspace};
use crate::{demo, setup};

/// `cargo xtask pretrain`: the demo's data when no other is named, then `vlm pretrain`.
pub fn pretrain(workspace: &Workspace, args: Vec<OsString>) -> Result<ExitCode> {
    let (flags, args) = launch_flags::split(args)?;
    flags.require_one_process()?;
    setup::ensure(workspace)?;
    let binary = build_vlm(workspace)?;
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        let status = Command::new(&binary).arg("pretrain").args(args).status();
        let status = status.with_context(|| format!("starting {}", binary.display()))?;
        println!("{}", launch_flags::HELP);
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if trains_on_the_demo(&args) {
        demo::ensure(workspace)?;
    }
    become_vlm(workspace, &binary, Some("pretrain"), args)
}

/// Any command of `vlm`, built first; `args` are passed on word for word, and begin with the
/// command where none is given.
pub fn vlm(workspace: &Workspace, command: Option<&str>, args: Vec<OsString>) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let binary = build_vlm(workspace)?;
    become_vlm(workspace, &binary, command, args)
}

/// Builds `vlm` and returns its absolute path. Cargo's progress stays visible.
pub fn build_vlm(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace
        .cargo()
        .args(["build", "--release", "--package", "vlm-cli", "--bin", "vlm"])
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let mut executable = None;
    if let Some(stdout) = cargo.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading cargo's messages")?;
            executable = executable_of_vlm(&line).or(executable);
        }
    }
    let status = cargo.wait().context("waiting for cargo")?;
    if !status.success() {
        bail!("building vlm failed ({status}); the compiler's reason is above");
    }
    executable.context("cargo built vlm but named no executable: expected one in its messages")
}

#[derive(Deserialize)]
struct CargoMessage {
    target: Option<CargoTarget>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct CargoTarget {
    name: String,
}

/// The path in cargo's message about the finished program; other messages have none.
fn executable_of_vlm(line: &str) -> Option<PathBuf> {
    let message: CargoMessage = serde_json::from_str(line).ok()?;
    message.executable.filter(|_| message.target.is_some_and(|target| target.name == "vlm"))
}

/// Replaces this process; returns only when that failed.
fn become_vlm(
    workspace: &Workspace,
    binary: &Path,
    command: Option<&str>,
    args: Vec<OsString>,
) -> Result<ExitCode> {
    let error = Command::new(binary)
        .args(command)
        .args(args)
        .env(DATA_DIR_VARIABLE, workspace.data_dir())
        .exec();
    Err(error).with_context(|| format!("starting {}", binary.display()))
}

/// Whether no data is named, on the command line or in the file behind `--config`.
fn trains_on_the_demo(args: &[OsString]) -> bool {
    if launch_flags::contains(args, &["data-path"]) {
        return false;
    }
    let config = args.iter().enumerate().find_map(|(i, arg)| match arg.to_str()? {
        "--config" => args.get(i + 1).map(PathBuf::from),
        other => other.strip_prefix("--config=").map(PathBuf::from),
    });
    // A file that cannot be read is for `vlm` to complain about.
    let text = config.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    !names_data(&text)
}

/// A TOML line that sets `data-path`.
fn names_data(toml: &str) -> bool {
    toml.lines()
        .filter_map(|line| line.split_once('='))
        .any(|(key, _)| matches!(key.trim().trim_matches('"'), "data-path" | "data_path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn only_the_programs_own_message_names_the_executable() {
        let artifact = r#"{"reason":"compiler-artifact","target":{"name":"vlm"},"executable":"t/release/vlm"}"#;
        assert_eq!(executable_of_vlm(artifact), Some(PathBuf::from("t/release/vlm")));
        let library =
            r#"{"reason":"compiler-artifact","target":{"name":"vlm_data"},"executable":null}"#;
        assert_eq!(executable_of_vlm(library), None);
        let build_script = r#"{"reason":"compiler-artifact","target":{"name":"build-script-build"},"executable":"b"}"#;
        assert_eq!(executable_of_vlm(build_script), None);
        assert_eq!(executable_of_vlm(r#"{"reason":"build-finished","success":true}"#), None);
    }

    #[test]
    fn demo_is_for_runs_that_name_no_data() {
        assert!(trains_on_the_demo(&words("--epochs 1")));
        assert!(!trains_on_the_demo(&words("--data_path=x.jsonl")));
        assert!(!trains_on_the_demo(&words("--data-path x.jsonl")));
    }

    #[test]
    fn configuration_may_name_the_data() {
        assert!(names_data("epochs = 1\n  data-path = \"x\"\n"));
        assert!(names_data("data_path='x'"));
        assert!(!names_data("# data-path = \"x\"\nepochs = 1\n"));
    }
}
