//! `cargo xtask fuzz`: builds and starts the driver of the fuzz targets. It is a program of its own,
//! because some targets need libtorch.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::setup;
use crate::workspace::Workspace;

/// Where Linux keeps files in memory: the driver writes a file for each input.
const MEMORY: &str = "/dev/shm";

/// Runs the driver with `args`.
///
/// # Errors
/// The driver cannot be built or started.
pub fn run(workspace: &Workspace, args: Vec<OsString>) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--release", "--package", "vlm-fuzz", "--bin", "vlm-fuzz", "--"]).args(args);
    if std::env::var_os("TMPDIR").is_none() && Path::new(MEMORY).is_dir() {
        cargo.env("TMPDIR", MEMORY);
    }
    let status = cargo.status().context("starting cargo run")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
