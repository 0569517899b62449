//! What the wheel and the tarball hold.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::workspace::Workspace;

/// What is packed.
pub(super) struct Package<'a> {
    pub(super) workspace: &'a Workspace,
    /// The program, linked with relative paths to libtorch.
    pub(super) program: PathBuf,
    /// The oldest glibc that the program runs with: 36 for 2.36.
    pub(super) glibc_minor: u32,
}

/// The version of the packages.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Folders in `data` that `vlm pretrain` without `--data-path` starts from.
const DATA_FOLDERS: [&str; 2] = ["demo-start", "demo-lm"];

impl Package<'_> {
    /// The files of the demo's starting weights, with their paths relative to `data`.
    pub(super) fn data_files(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let data = self.workspace.root().join("data");
        let mut files = Vec::new();
        for folder in DATA_FOLDERS {
            add_files(&data, Path::new(folder), &mut files)?;
        }
        Ok(files)
    }

    /// The licences of this program.
    pub(super) fn licenses(&self) -> [(PathBuf, &'static str); 2] {
        ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| (self.workspace.root().join(name), name))
    }
}

/// Adds the files in `root/folder` and below, as absolute path and path relative to `root`, sorted
/// by name.
pub(super) fn add_files(
    root: &Path,
    folder: &Path,
    files: &mut Vec<(PathBuf, PathBuf)>,
) -> Result<()> {
    let path = root.join(folder);
    let entries = fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>>>()
        .with_context(|| format!("listing {}", path.display()))?;
    names.sort();
    for name in names {
        let relative = folder.join(name);
        match root.join(&relative).is_dir() {
            true => add_files(root, &relative, files)?,
            false => files.push((root.join(&relative), relative)),
        }
    }
    Ok(())
}

/// Fails on machines for which no wheels of torch with this program's interface exist.
pub(super) fn require_linux_x86_64() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "packages are made on Linux on x86_64, but this is {} on {}",
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    Ok(())
}
