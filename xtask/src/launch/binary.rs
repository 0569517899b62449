//! Builds the program `vlm`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace::Workspace;

/// Builds `vlm` and returns its absolute path. Cargo's progress stays visible.
pub fn build_vlm(workspace: &Workspace) -> Result<PathBuf> {
    build_vlm_with(workspace, &[])
}

/// As [`build_vlm`], with environment variables for the build.
pub fn build_vlm_with(workspace: &Workspace, variables: &[(&str, &str)]) -> Result<PathBuf> {
    let mut cargo = workspace
        .cargo()
        .envs(variables.iter().copied())
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
        bail!("building vlm failed ({status}); see the compiler's messages above");
    }
    executable.context("cargo built vlm, but its messages do not name the executable")
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

/// The path of the executable, if `line` is cargo's message that `vlm` was built.
fn executable_of_vlm(line: &str) -> Option<PathBuf> {
    let message: CargoMessage = serde_json::from_str(line).ok()?;
    message.executable.filter(|_| message.target.is_some_and(|target| target.name == "vlm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_read_only_from_the_message_about_vlm() {
        let artifact = r#"{"reason":"compiler-artifact","target":{"name":"vlm"},"executable":"t/release/vlm"}"#;
        assert_eq!(executable_of_vlm(artifact), Some(PathBuf::from("t/release/vlm")));
        let library =
            r#"{"reason":"compiler-artifact","target":{"name":"vlm_data"},"executable":null}"#;
        assert_eq!(executable_of_vlm(library), None);
        let build_script = r#"{"reason":"compiler-artifact","target":{"name":"build-script-build"},"executable":"b"}"#;
        assert_eq!(executable_of_vlm(build_script), None);
        assert_eq!(executable_of_vlm(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
