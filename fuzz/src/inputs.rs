//! The targets' inputs as files: seeds, the corpus of `cargo fuzz`, and findings.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vlm_fuzz::{Target, targets};

/// The folder of this crate.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The target `name`.
///
/// # Errors
/// There is none; the message lists them.
pub fn find(name: &str) -> Result<Target> {
    let mut all = targets();
    let Some(at) = all.iter().position(|target| target.name == name) else {
        let names: Vec<&str> = all.iter().map(|target| target.name).collect();
        bail!("no target {name:?}; the targets are {}", names.join(", "));
    };
    Ok(all.swap_remove(at))
}

/// The seeds of a target, and the inputs that `cargo fuzz` found.
pub fn seeds_of(target: &Target) -> Vec<Vec<u8>> {
    let corpus = folder().join("corpus").join(target.name);
    let mut found: Vec<PathBuf> =
        fs::read_dir(corpus).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    let found = found.iter().filter_map(|path| fs::read(path).ok());
    (target.seeds)().into_iter().chain(found).collect()
}

/// Saves an input under a name that its bytes determine, and returns the path.
///
/// # Errors
/// The folder cannot be written.
pub fn save(artifacts: &Path, target: &str, input: &[u8]) -> Result<PathBuf> {
    let folder = artifacts.join(target);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    // FNV-1a: a name for people, no protection.
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = folder.join(format!("crash-{hash:016x}"));
    fs::write(&path, input).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Writes the seeds of every target into its corpus.
///
/// # Errors
/// The folder cannot be written.
pub fn write_corpus() -> Result<()> {
    for target in targets() {
        let folder = folder().join("corpus").join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
