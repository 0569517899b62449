//! The checkout, its folders, how cargo is called in it, and the type of usage errors.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Environment variable that gives `vlm` and the tests the folder of the demo. The program cannot
/// find it itself: several checkouts may share its target folder.
pub const DATA_DIR_VARIABLE: &str = "VLM_DATA_DIR";

/// The root folder of this checkout.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The checkout of the manifest that cargo names in the environment, or, if the program was not
    /// started by cargo, the checkout in which it was compiled.
    pub fn locate() -> Self {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir.parent().map(Path::to_path_buf);
        Self { root: root.unwrap_or(manifest_dir) }
    }

    /// Root folder of the checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The link to libtorch that every build uses (see `.cargo/config.toml`).
    pub fn libtorch_link(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// Absolute path of the folder with the demo's weights and data: that in [`DATA_DIR_VARIABLE`],
    /// else `data` in the checkout.
    pub fn data_dir(&self) -> PathBuf {
        let named = env::var_os(DATA_DIR_VARIABLE).filter(|dir| !dir.is_empty());
        let dir = named.map_or_else(|| self.root.join("data"), PathBuf::from);
        std::path::absolute(&dir).unwrap_or(dir)
    }

    /// Folder of the demo data set.
    pub fn demo_data(&self) -> PathBuf {
        self.data_dir().join("demo")
    }

    /// The target folder of cargo, for files that `cargo clean` may remove.
    pub fn target_dir(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) if !dir.is_empty() => self.root.join(dir),
            _ => self.root.join("target"),
        }
    }

    /// A command that runs cargo in the root folder. It builds against `.libtorch`; set-up has
    /// pointed that link at the `LIBTORCH` of the user, if there is one.
    pub fn cargo(&self) -> Command {
        let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(program);
        command.current_dir(&self.root).env("LIBTORCH", self.libtorch_link().join("torch"));
        command
    }
}

/// An error in what the user asked for. Its exit code is 2; that of every other error is 1.
#[derive(Debug)]
pub struct UsageError(String);

/// A usage error with this message.
pub fn usage_error(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
