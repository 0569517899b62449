//! `cargo xtask dist`: packs the program for machines without Rust and without a checkout, as a
//! Python wheel that uses the libtorch of an installed torch package, and as a tarball with a
//! libtorch of its own.

mod package;
mod tarball;
mod wheel;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use self::package::Package;
use crate::launch;
use crate::setup;
use crate::workspace::Workspace;

/// Environment variable for the build: the program looks for libtorch only in places relative to
/// itself.
const RELOCATABLE_VARIABLE: &str = "VLM_RELOCATABLE";

/// Flags of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub struct DistArgs {
    /// Folder for the wheel and the tarball
    #[arg(long, value_name = "DIR", default_value = "dist")]
    out_dir: PathBuf,
}

/// Builds the program and writes both packages.
///
/// # Errors
/// A failure of the build or of the file system.
pub fn run(workspace: &Workspace, args: &DistArgs) -> Result<()> {
    setup::ensure(workspace)?;
    let built = launch::build_vlm_with(workspace, &[(RELOCATABLE_VARIABLE, "1")])?;
    let scratch = tempfile::tempdir().context("making a folder for the program")?;
    let program = scratch.path().join("vlm");
    fs::copy(&built, &program).with_context(|| format!("copying {}", built.display()))?;
    // The other commands need the program that finds the libtorch of this checkout.
    launch::build_vlm(workspace)?;
    let bytes = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let glibc_minor = newest_glibc(&bytes).with_context(|| {
        format!("{} does not name a version of glibc that it needs", program.display())
    })?;
    let package = Package { workspace, program, glibc_minor };
    let out_dir = std::path::absolute(&args.out_dir)?;
    fs::create_dir_all(&out_dir).with_context(|| format!("making {}", out_dir.display()))?;
    let wheel = wheel::write(&package, &out_dir)?;
    println!("{}", wheel.display());
    let tarball = tarball::write(&package, &out_dir)?;
    println!("{}", tarball.display());
    Ok(())
}

/// The newest version 2.N of glibc among the symbols that a program needs; N. The names of the
/// versions, such as `GLIBC_2.34`, stand in its string table.
fn newest_glibc(program: &[u8]) -> Option<u32> {
    const PREFIX: &[u8] = b"GLIBC_2.";
    let versions = program.windows(PREFIX.len()).enumerate().filter_map(|(start, window)| {
        let digits = program.get(start + PREFIX.len()..)?;
        let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&digits[..length]).ok()?;
        (window == PREFIX).then(|| number.parse().ok())?
    });
    versions.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_glibc_counts() {
        let program = b"\0GLIBC_2.17\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_PRIVATE\0";
        assert_eq!(newest_glibc(program), Some(34));
        assert_eq!(newest_glibc(b"static"), None);
    }
}
