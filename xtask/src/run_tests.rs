//! `cargo xtask test`: runs all tests of the workspace, after building the program and making the
//! demo data that the whole-run tests use.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::workspace::{DATA_DIR_VARIABLE, Workspace};
use crate::{demo, fake_cuda, launch, setup};

/// Environment variable that gives the tests the path of `vlm`.
const BINARY_VARIABLE: &str = "VLM_BIN";
/// Environment variable that gives the tests the path of this program, which launches several
/// processes.
const LAUNCHER_VARIABLE: &str = "XTASK_BIN";

/// Replaces this process by `cargo test`. `args` are passed to it; unless they select packages, all
/// packages are tested.
pub fn run(workspace: &Workspace, mut args: Vec<OsString>) -> Result<ExitCode> {
    let has_fake_cuda = args.iter().any(|arg| arg == fake_cuda::FLAG);
    args.retain(|arg| arg != fake_cuda::FLAG);
    setup::ensure(workspace)?;
    // The release profile, so that the bindings are compiled once for the program and the tests.
    let binary = launch::build_vlm(workspace)?;
    demo::ensure(workspace)?;
    let mut command = workspace.cargo();
    command.args(["test", "--release"]).env(BINARY_VARIABLE, binary);
    command.env(DATA_DIR_VARIABLE, workspace.data_dir());
    command.env(LAUNCHER_VARIABLE, env::current_exe().context("finding the path of this program")?);
    if has_fake_cuda {
        let (fake_args, (variable, folder)) = fake_cuda::prepare(workspace, &args)?;
        command.env(variable, folder);
        args = fake_args;
    } else if !args.iter().any(|arg| names_a_package(&arg.to_string_lossy())) {
        command.arg("--workspace");
    }
    let error = command.args(args).exec();
    Err(error).context("starting cargo test")
}

fn names_a_package(arg: &str) -> bool {
    arg.starts_with("-p") || arg == "--package" || arg.starts_with("--package=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_distinguished_from_test_filters() {
        assert!(names_a_package("-p") && names_a_package("-pvlm-data"));
        assert!(names_a_package("--package=vlm-data"));
        assert!(!names_a_package("resumed_run") && !names_a_package("--nocapture"));
    }
}
