//! A libtorch folder: its files, its version, and whether programs can be linked to it directly.
//! Where the folder comes from does not matter here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The release that the pinned `tch` binds.
pub const VERSION: &str = "2.11.0";

/// The devices that a build of libtorch supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// The CPU only.
    Cpu,
    /// The CPU and NVIDIA GPUs.
    Cuda,
}

impl Flavour {
    /// The name in folder names and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// A folder with libtorch [`VERSION`].
#[derive(Debug)]
pub struct Libtorch {
    /// The folder with `include/` and `lib/`.
    pub torch_dir: PathBuf,
    /// The full version that the folder states, such as `2.11.0+cu130`.
    pub version: String,
    /// The folder of `libtorch_cuda.so`; `None` if there is none.
    pub cuda_lib_dir: Option<PathBuf>,
}

impl Libtorch {
    /// Opens `folder`, or `folder/torch` if the libraries are there.
    ///
    /// # Errors
    /// A missing file or another version; the message names the file, or both versions.
    pub fn open(folder: &Path) -> Result<Self> {
        let nested = folder.join("torch");
        let torch_dir = if nested.join("lib").is_dir() { nested } else { folder.to_path_buf() };
        for file in ["lib/libtorch_cpu.so", "lib/libc10.so", "include/ATen/ATen.h"] {
            if !torch_dir.join(file).is_file() {
                bail!("{} is not a libtorch folder: expected {file} in it", torch_dir.display());
            }
        }
        let version = read_version(&torch_dir)?;
        if release_of(&version) != VERSION {
            bail!(
                "{} holds libtorch {version}, expected {VERSION} (the release that the pinned \
                 tch binds)",
                torch_dir.display()
            );
        }
        let cuda_lib_dir = [torch_dir.join("lib"), torch_dir.join("../cuda")]
            .into_iter()
            .find(|dir| dir.join("libtorch_cuda.so").is_file());
        Ok(Self { torch_dir, version, cuda_lib_dir })
    }

    /// Whether this build supports GPUs.
    pub fn flavour(&self) -> Flavour {
        if self.cuda_lib_dir.is_some() { Flavour::Cuda } else { Flavour::Cpu }
    }

    /// Whether programs can be linked to this folder directly: it is called `torch`, has
    /// `libtorch.so`, and has no `libtorch_cuda.so` that torch-sys would link.
    pub fn can_be_linked(&self) -> bool {
        let lib = self.torch_dir.join("lib");
        self.torch_dir.file_name().is_some_and(|name| name == "torch")
            && lib.join("libtorch.so").is_file()
            && !lib.join("libtorch_cuda.so").exists()
    }
}

/// Reads the version from `version.py` (wheels) or `build-version` (archives of libtorch).
fn read_version(torch_dir: &Path) -> Result<String> {
    if let Ok(text) = fs::read_to_string(torch_dir.join("version.py")) {
        return version_of_module(&text)
            .with_context(|| format!("{}/version.py has no __version__", torch_dir.display()));
    }
    let text = fs::read_to_string(torch_dir.join("build-version")).with_context(|| {
        format!(
            "{} has neither version.py nor build-version, so its version is unknown; expected \
             libtorch {VERSION}",
            torch_dir.display()
        )
    })?;
    Ok(text.trim().to_owned())
}

/// Reads the version from the text of `version.py`: `__version__ = '2.11.0+cu130'` gives
/// `2.11.0+cu130`.
fn version_of_module(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    let quoted = line.split_once('=')?.1.trim();
    Some(quoted.trim_matches(|c| c == '\'' || c == '"').to_owned())
}

/// The version without its local part: `2.11.0+cu130` gives `2.11.0`.
fn release_of(version: &str) -> &str {
    version.split_once('+').map_or(version, |(release, _)| release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_the_version_module_of_a_wheel() {
        let text = "from typing import Optional\n\n__all__ = ['__version__', 'cuda']\n\
                    __version__ = '2.11.0+cu130'\ndebug = False\n";
        assert_eq!(version_of_module(text).as_deref(), Some("2.11.0+cu130"));
        assert_eq!(version_of_module("debug = False\n"), None);
    }

    #[test]
    fn a_pre_release_is_not_the_release() {
        assert_eq!(release_of("2.11.0+cpu"), "2.11.0");
        assert_eq!(release_of("2.11.0"), "2.11.0");
        assert_ne!(release_of("2.11.0a0+git70d99e9"), VERSION);
    }

    #[test]
    fn a_folder_without_libraries_is_refused_with_its_name() {
        let error = Libtorch::open(Path::new("no/such/folder")).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
        assert!(error.to_string().contains("lib/libtorch_cpu.so"), "{error}");
    }
}
