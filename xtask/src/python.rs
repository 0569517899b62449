//! The user's Python, asked about without importing anything: its version, whether it has pip,
//! where its torch is. We only ever run its pip; the Python itself is not used.

use std::path::PathBuf;
use std::process::Command;

/// Printed as one `key value` line each. `find_spec` finds a top-level package without importing
/// it: importing torch takes seconds and can fail for reasons that are not ours.
const QUESTION: &str = "
import sys, os
from importlib.util import find_spec
print('version', '%d.%d.%d' % sys.version_info[:3])
print('pip', 'yes' if find_spec('pip') else 'no')
torch = find_spec('torch')
if torch and torch.origin: print('torch', os.path.dirname(torch.origin))
";

/// A Python that answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Python {
    /// As it is started: `python3`.
    pub program: String,
    /// Major, minor, patch.
    pub version: (u32, u32, u32),
    /// Whether `-m pip` can be run.
    pub has_pip: bool,
    /// The folder of its torch, of whichever version.
    pub torch_dir: Option<PathBuf>,
}

impl Python {
    /// Every Python on the search path that answers, an active virtual environment's first.
    pub fn find_all() -> Vec<Self> {
        ["python3", "python"].into_iter().filter_map(Self::ask).collect()
    }

    /// The first that has pip.
    pub fn with_pip(pythons: &[Self]) -> Option<&Self> {
        pythons.iter().find(|python| python.has_pip)
    }

    fn ask(program: &str) -> Option<Self> {
        let output = Command::new(program).args(["-c", QUESTION]).output().ok()?;
        // A Python 2 stops at the import: it is no answer.
        output.status.success().then_some(())?;
        parse_answer(program, &String::from_utf8_lossy(&output.stdout))
    }

    /// `3.11.7`.
    pub fn version_text(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("{major}.{minor}.{patch}")
    }
}

fn parse_answer(program: &str, answer: &str) -> Option<Python> {
    let value =
        |key: &str| answer.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
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
    fn answer_with_torch_is_read_whole() {
        let answer = "version 3.11.7\npip yes\ntorch opt/with space/torch\n";
        let python = parse_answer("python3", answer).unwrap();
        assert_eq!(python.version, (3, 11, 7));
        assert!(python.has_pip);
        assert_eq!(python.torch_dir, Some(PathBuf::from("opt/with space/torch")));
    }

    #[test]
    fn answer_without_pip_or_torch_says_so() {
        let python = parse_answer("python", "version 3.9.2\npip no\n").unwrap();
        assert!(!python.has_pip);
        assert_eq!(python.torch_dir, None);
        assert_eq!(python.version_text(), "3.9.2");
    }

    #[test]
    fn unreadable_versions_are_no_answer() {
        assert_eq!(parse_version("3.12"), None);
        assert_eq!(parse_version("three"), None);
        assert_eq!(parse_answer("python3", "Segmentation fault\n"), None);
    }
}
