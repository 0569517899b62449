//! Where the checkout is, how cargo is called in it, and the error for a wrong request.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells `vlm` and the tests where the demo is: a program in a target folder that several checkouts
/// share cannot know.
pub const DATA_DIR_VARIABLE: &str = "VLM_DATA_DIR";

/// The root folder of this checkout.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Cargo names the manifest's folder when it runs us. The path known when we were compiled is
    /// for a binary started by hand.
    pub fn locate() -> Self {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir.parent().map(Path::to_path_buf);
        Self { root: root.unwrap_or(manifest_dir) }
    }

    /// The checkout's root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The link that every build reads libtorch through (see `.cargo/config.toml`).
    pub fn libtorch_link(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// Where the demo's weights and data are, absolute: the checkout's `data`, unless the user
    /// named another folder in [`DATA_DIR_VARIABLE`].
    pub fn data_dir(&self) -> PathBuf {
        let named = env::var_os(DATA_DIR_VARIABLE).filter(|dir| !dir.is_empty());
        let dir = named.map_or_else(|| self.root.join("data"), PathBuf::from);
        std::path::absolute(&dir).unwrap_or(dir)
    }

    /// The prepared demo data set.
    pub fn demo_data(&self) -> PathBuf {
        self.data_dir().join("demo")
    }

    /// Where cargo writes, for files that `cargo clean` may take away.
    pub fn target_dir(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) if !dir.is_empty() => self.root.join(dir),
            _ => self.root.join("target"),
        }
    }

    /// The cargo that runs us, in the root folder, building against `.libtorch` and nothing else:
    /// set-up has already turned an exported `LIBTORCH` into that link.
    pub fn cargo(&self) -> Command {
        let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(program);
        command.current_dir(&self.root).env("LIBTORCH", self.libtorch_link().join("torch"));
        command
    }
}

/// What the user asked for cannot be done as asked: exit code 2, where a failure on the way is 1.
#[derive(Debug)]
pub struct UsageError(String);

/// An error that says what was asked and what to ask instead.
pub fn usage_error(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
