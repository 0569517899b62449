//! Runs programs for what they print, or for whether they succeed.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// What a program prints. `doing` says what it is run for.
///
/// # Errors
/// It cannot be started or fails; the error has its last lines on standard error.
pub fn output_of(command: &mut Command, doing: &str) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command.output();
    let output = output.with_context(|| format!("{doing}: starting {}", program.display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = stderr.lines().collect();
        let tail = &lines[lines.len().saturating_sub(20)..];
        bail!("{doing} failed ({}):\n{}", output.status, tail.join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first line that a program prints; `None` if it cannot be started or fails.
pub fn first_line(command: &mut Command) -> Option<String> {
    output_of(command, "").ok()?.lines().next().map(str::to_owned)
}

/// Runs a program without showing what it prints. Returns whether it succeeds.
///
/// # Errors
/// It cannot be started.
pub fn succeeds(command: &mut Command) -> Result<bool> {
    let program = command.get_program().to_owned();
    let output = command.output();
    Ok(output.with_context(|| format!("starting {}", program.display()))?.status.success())
}
