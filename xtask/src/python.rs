//! Finds the user's Python: its version, whether it has pip, and where its torch is. Only its pip
//! is ever used.

use std::path::PathBuf;
use std::process::Command;

use crate::program::output_of;

/// Script that prints each property as a line `key value`. `find_spec` finds a package without
/// importing it: importing torch takes seconds and may fail.
const PROBE_SCRIPT: &str = "
import sys, os
from importlib.util import find_spec
print('version', '%d.%d.%d' % sys.version_info[:3])
print('pip', 'yes' if find_spec('pip') else 'no')
torch = find_spec('torch')
if torch and torch.origin: print('torch', os.path.dirname(torch.origin))
";

/// A Python 3 that can be run.
#[derive(Debug, PartialEq, Eq)]
pub struct Python {
    /// Name of the program, such as `python3`.
    pub program: String,
    /// Major, minor and patch version.
    pub version: (u32, u32, u32),
    /// Whether it has pip.
    pub has_pip: bool,
    /// The folder of its torch, of any version.
    pub torch_dir: Option<PathBuf>,
}

impl Python {
    /// Every Python 3 on the search path, starting with that of an active virtual environment.
    pub fn find_all() -> Vec<Self> {
        ["python3", "python"].into_iter().filter_map(Self::probe).collect()
    }

    /// The first of `pythons` that has pip.
    pub fn with_pip(pythons: &[Self]) -> Option<&Self> {
        pythons.iter().find(|python| python.has_pip)
    }

    fn probe(program: &str) -> Option<Self> {
        // Python 2 fails at the import.
        let printed =
            output_of(Command::new(program).args(["-c", PROBE_SCRIPT]), "looking for torch");
        parse_probe(program, &printed.ok()?)
    }

    /// The version as text, such as `3.11.7`.
    pub fn version_text(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("{major}.{minor}.{patch}")
    }
}

fn parse_probe(program: &str, output: &str) -> Option<Python> {
    let value =
        |key: &str| output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    Some(Python {
        program: program.to_owned(),
        version: parse_version(value("version")?)?,
        has_pip: value("pip") == Some("yes"),
        torch_dir: value("torch").map(PathBuf::from),
    })
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.trim().split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_of_a_python_with_torch_is_parsed() {
        let output = "version 3.11.7\npip yes\ntorch opt/with space/torch\n";
        let python = parse_probe("python3", output).unwrap();
        assert_eq!(python.version, (3, 11, 7));
        assert!(python.has_pip);
        assert_eq!(python.torch_dir, Some(PathBuf::from("opt/with space/torch")));
    }

    #[test]
    fn probe_of_a_python_without_pip_and_torch_is_parsed() {
        let python = parse_probe("python", "version 3.9.2\npip no\n").unwrap();
        assert!(!python.has_pip);
        assert_eq!(python.torch_dir, None);
        assert_eq!(python.version_text(), "3.9.2");
    }

    #[test]
    fn invalid_versions_are_rejected() {
        assert_eq!(parse_version("3.12"), None);
        assert_eq!(parse_version("three"), None);
        assert_eq!(parse_probe("python3", "Segmentation fault\n"), None);
    }
}
