//! The C++ compiler, which also compiles the bindings: `CXX`, else `c++`.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::program::first_line;

/// The compiler's name, with its arguments if `CXX` carries some, as in `ccache g++`.
pub fn name() -> String {
    env::var("CXX").ok().filter(|name| !name.trim().is_empty()).unwrap_or_else(|| "c++".to_owned())
}

/// A command that runs the compiler.
pub fn compiler() -> Command {
    let name = name();
    let mut words = name.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// The first line of the compiler's `--version`.
///
/// # Errors
/// The compiler cannot be started.
pub fn version() -> Result<String> {
    first_line(compiler().arg("--version")).with_context(|| {
        format!(
            "the C++ compiler {} cannot be started: install one (`build-essential` on Debian and \
             Ubuntu, `gcc-c++` on Fedora), or set CXX",
            name()
        )
    })
}

/// Whether a library exists and is not older than its source.
pub fn is_newer(library: &Path, source: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    matches!((modified(library), modified(source)), (Some(a), Some(b)) if a >= b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_is_rebuilt_after_a_change_of_its_source() {
        let folder = tempfile::tempdir().unwrap();
        let [source, library] = ["plugin.cpp", "libplugin.so"].map(|name| folder.path().join(name));
        fs::write(&source, "").unwrap();
        assert!(!is_newer(&library, &source));
        fs::write(&library, "").unwrap();
        assert!(is_newer(&library, &source));
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        fs::File::options().write(true).open(&source).unwrap().set_modified(later).unwrap();
        assert!(!is_newer(&library, &source));
    }
}
