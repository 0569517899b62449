//! `cargo xtask check`: format, house rules, lints. All are run, so that one call shows everything
//! that is wrong.

mod circles;
mod deny;
mod dependencies;
mod features;
mod finding;
mod licences;
mod pages;
mod sources;
mod unused;

use std::process::ExitCode;

use anyhow::{Context, Result};
use vlm_display::count;

use crate::program::succeeds;
use crate::workspace::Workspace;
use crate::{flags_page, setup};

/// Exit code 1 when anything is wrong, after saying what.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let mut failures = Vec::new();

    eprintln!("check: format");
    if !passes(workspace, "fmt", "rustfmt", &["--all", "--check"])? {
        failures.push("format (run `cargo fmt --all`)".to_owned());
    }

    eprintln!("check: house rules");
    let mut findings = dependencies::check(workspace)?;
    findings.extend(circles::check(workspace)?);
    findings.extend(features::check(workspace)?);
    findings.extend(licences::check(workspace)?);
    findings.extend(sources::check(workspace)?);
    findings.extend(unused::check(workspace)?);
    findings.extend(pages::check(workspace)?);
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        failures.push(format!("house rules ({})", count(findings.len(), "finding")));
    }

    if !flags_page::is_current(workspace)? {
        failures.push(format!("{} (run `cargo xtask docs`)", flags_page::PAGE));
    }

    eprintln!("check: cargo deny");
    if !deny::passes(workspace)? {
        failures.push("cargo deny".to_owned());
    }

    eprintln!("check: clippy");
    setup::ensure(workspace)?;
    let clippy = [
        "--keep-going", "--workspace", "--all-targets", "--features", "vlm-tests/fake-cuda",
        "--release", "--", "-D", "warnings",
    ];
    if !passes(workspace, "clippy", "clippy", &clippy)? {
        failures.push("clippy".to_owned());
    }

    eprintln!("check: rustdoc");
    let doc = ["--workspace", "--lib", "--no-deps", "--release", "--quiet"];
    let status = workspace.cargo().arg("doc").args(doc).env("RUSTDOCFLAGS", "-D warnings").status();
    if !status.context("starting cargo doc")?.success() {
        failures.push("rustdoc".to_owned());
    }

    eprintln!("check: packages");
    let package = ["package", "--workspace", "--no-verify", "--allow-dirty", "--quiet"];
    if !workspace.cargo().args(package).status().context("starting cargo package")?.success() {
        failures.push("cargo package".to_owned());
    }

    if failures.is_empty() {
        eprintln!("check: all passed");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("check: failed: {}", failures.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Runs a cargo command that comes as a component of the toolchain.
fn passes(workspace: &Workspace, command: &str, component: &str, args: &[&str]) -> Result<bool> {
    let installed = succeeds(workspace.cargo().args([command, "--version"]))?;
    if !installed {
        eprintln!("`cargo {command}` is not installed: run `rustup component add {component}`");
        return Ok(false);
    }
    let status = workspace.cargo().arg(command).args(args).status();
    Ok(status.with_context(|| format!("starting cargo {command}"))?.success())
}
