//! `cargo xtask test`: runs all tests of the workspace, after building the program and making the
//! demo data that the whole-run tests use.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::workspace::{DATA_DIR_VARIABLE, Workspace};
use crate::{demo, fake_cuda, launch, setup};

/// Environment variable that gives the tests the path of `vlm`.
const BINARY_VARIABLE: &str = "VLM_BIN";
/// Environment variable that gives the tests the path of this program, which launches several
/// processes.
const LAUNCHER_VARIABLE: &str = "XTASK_BIN";

/// Something that tests need and this repository does not contain. Tests that need it are ignored,
/// so that a run without it does not count them as passed.
struct Fixture {
    what: &'static str,
    /// The environment variable that names it.
    variable: &'static str,
    find: fn(&Workspace) -> bool,
    /// Parts of the names of the tests that need it.
    tests: &'static [&'static str],
}

const FIXTURES: [Fixture; 5] = [
    Fixture {
        what: "MiniMind's tokenizer",
        variable: "VLM_MINIMIND_TOKENIZER",
        find: has_minimind_tokenizer,
        tests: &["tokenize::", "reference_runs::"],
    },
    Fixture {
        what: "a Python with torch",
        variable: "VLM_PYTHON",
        find: has_python_with_torch,
        tests: &["python_"],
    },
    Fixture {
        what: "a Python with transformers 5",
        variable: "VLM_TRANSFORMERS_PYTHON",
        find: has_python_with_transformers,
        tests: &["transformers_"],
    },
    Fixture {
        what: "a Python with openai",
        variable: "VLM_OPENAI_PYTHON",
        find: has_python_with_openai,
        tests: &["openai_"],
    },
    Fixture {
        what: "torchrun",
        variable: "TORCHRUN",
        find: has_torchrun,
        tests: &["acceptance::torchrun_"],
    },
];

/// Runs `cargo test`; `args` may filter by name, or name packages instead of all. Without `args`, the
/// ignored tests follow whose fixtures this machine has.
///
/// # Errors
/// A program that cannot be built or started.
pub fn run(workspace: &Workspace, mut args: Vec<OsString>) -> Result<ExitCode> {
    let has_fake_cuda = args.iter().any(|arg| arg == fake_cuda::FLAG);
    args.retain(|arg| arg != fake_cuda::FLAG);
    setup::ensure(workspace)?;
    // The release profile, so that the bindings are compiled once for the program and the tests.
    let binary = launch::build_vlm(workspace)?;
    demo::ensure(workspace)?;
    let launcher = env::current_exe().context("finding the path of this program")?;
    let cargo_test = || {
        let mut command = workspace.cargo();
        command.args(["test", "--release"]).env(BINARY_VARIABLE, &binary);
        command.env(DATA_DIR_VARIABLE, workspace.data_dir()).env(LAUNCHER_VARIABLE, &launcher);
        command
    };
    if has_fake_cuda {
        let (args, (variable, folder)) = fake_cuda::prepare(workspace, &args)?;
        return exit_code(cargo_test().env(variable, folder).args(args));
    }
    let is_whole = args.is_empty();
    let mut command = cargo_test();
    if !args.iter().any(|arg| names_a_package(&arg.to_string_lossy())) {
        command.arg("--workspace");
    }
    let code = exit_code(command.args(args))?;
    if code != ExitCode::SUCCESS || !is_whole {
        return Ok(code);
    }
    let (found, missing): (Vec<_>, Vec<_>) =
        FIXTURES.iter().partition(|fixture| (fixture.find)(workspace));
    let names = found.iter().flat_map(|fixture| fixture.tests);
    let mut code = code;
    if !found.is_empty() {
        let ignored = ["--workspace", "--tests", "--quiet", "--", "--ignored"];
        code = exit_code(cargo_test().args(ignored).args(names))?;
    }
    for Fixture { what, variable, .. } in missing {
        eprintln!(
            "test: {what} was not found, so the tests that need it were not run; set {variable}"
        );
    }
    Ok(code)
}

/// Runs the command to its end.
fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().context("starting cargo test")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn has_minimind_tokenizer(workspace: &Workspace) -> bool {
    let beside = workspace.root().join("../shared/minimind_tokenizer");
    let folder = env::var_os("VLM_MINIMIND_TOKENIZER").map_or(beside, PathBuf::from);
    folder.join("tokenizer.json").is_file()
}

fn has_python_with_torch(_: &Workspace) -> bool {
    python_runs("VLM_PYTHON", "import torch")
}

fn has_python_with_transformers(_: &Workspace) -> bool {
    let needed = "import torch, torchvision, num2words, transformers\n\
                  assert int(transformers.__version__.split('.')[0]) >= 5";
    python_runs("VLM_TRANSFORMERS_PYTHON", needed)
}

fn has_python_with_openai(_: &Workspace) -> bool {
    python_runs("VLM_OPENAI_PYTHON", "import openai")
}

/// Whether the Python that `variable` names, else `python3`, runs a program.
fn python_runs(variable: &str, program: &str) -> bool {
    let python = env::var_os(variable).unwrap_or_else(|| "python3".into());
    let output = Command::new(python).args(["-c", program]).output();
    output.is_ok_and(|output| output.status.success())
}

fn has_torchrun(_: &Workspace) -> bool {
    let torchrun = env::var_os("TORCHRUN").unwrap_or_else(|| "torchrun".into());
    Command::new(torchrun).arg("--help").output().is_ok_and(|output| output.status.success())
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
