//! Rules on the text of tracked files: where unsafe code may stand, how libraries name settings, and
//! what must not be written down because it holds on one machine only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::finding::Finding;
use crate::program::output_of;
use crate::workspace::Workspace;

/// Where unsafe code may stand, each with its reason. A name that ends in `/` is a folder.
const UNSAFE_IS_ALLOWED: [(&str, &str); 2] = [
    ("crates/vlm-torch/", "the boundary to libtorch"),
    ("xtask/src/sys.rs", "system calls that the standard library lacks"),
];

/// Libraries whose messages name settings in backticks, of which the command line makes flags.
const NO_FLAGS: [&str; 6] = [
    "crates/vlm-data/src/",
    "crates/vlm-train/src/checkpoint/",
    "crates/vlm-train/src/out_dir.rs",
    "crates/vlm-train/src/out_of_memory.rs",
    "crates/vlm-train/src/run/",
    "crates/vlm-train/src/trainer/",
];

/// Folders that are someone's own. In halves, so that this file passes its own check.
const PRIVATE_FOLDERS: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];

/// Package registries: packages are named and the user's settings say where they come from.
const REGISTRY_HOSTS: [&str; 6] = [
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("download.pytorch", ".org"),
    concat!("static.crates", ".io"),
    concat!("index.crates", ".io"),
    concat!("conda.anaconda", ".org"),
];

/// Reads every file that git tracks.
pub fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tracked_files(workspace)? {
        // A file deleted but not committed yet, a link, or no text: nothing to read.
        let Ok(text) = fs::read_to_string(workspace.root().join(&file)) else { continue };
        findings.extend(findings_in(&file, &text));
    }
    Ok(findings)
}

/// The files that git tracks, relative to the root of the checkout.
///
/// # Errors
/// git fails.
pub(super) fn tracked_files(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z"]).current_dir(workspace.root());
    let names = output_of(&mut git, "git ls-files, which lists the files to check,")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

fn findings_in(file: &Path, text: &str) -> Vec<Finding> {
    let may_be_unsafe = file.extension().is_none_or(|extension| extension != "rs")
        || UNSAFE_IS_ALLOWED.iter().any(|(place, _)| file.starts_with(place));
    let has_no_flags = NO_FLAGS.iter().any(|folder| file.starts_with(folder));
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut report = |message: String| {
            findings.push(Finding { file: file.to_path_buf(), line: index + 1, message });
        };
        if !may_be_unsafe && has_word(&code_of(line), "unsafe") {
            report(
                "unsafe code stands only in crates/vlm-torch (or is listed in check)".to_owned(),
            );
        }
        if has_no_flags && !line.trim_start().starts_with("//") {
            if names_flag(line) {
                report(
                    "a library names settings in backticks (`max_seq_len`), no flags".to_owned(),
                );
            }
            if let Some(name) = unknown_setting(line) {
                report(format!(
                    "`{name}` in backticks is no setting; vlm-config/src/flags.rs lists flags that \
                     are none"
                ));
            }
        }
        if let Some(folder) = PRIVATE_FOLDERS.iter().find(|folder| names_path(line, folder)) {
            report(format!("{folder}… is a path of one machine: make it relative"));
        }
        if let Some(host) = REGISTRY_HOSTS.iter().find(|host| line.contains(*host)) {
            report(format!(
                "{host} is a registry: name the package, the user's settings say where"
            ));
        }
    }
    findings
}

/// Whether a line has a flag such as `--max-seq-len`.
fn names_flag(line: &str) -> bool {
    line.match_indices("--")
        .any(|(at, dashes)| line[at + dashes.len()..].starts_with(|c: char| c.is_ascii_lowercase()))
}

/// The first single word in backticks that is not the name of a setting or a flag.
fn unknown_setting(line: &str) -> Option<&str> {
    let is_name = |word: &&str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let mut words = line.split('`').skip(1).step_by(2).filter(is_name);
    words.find(|name| !vlm_config::is_named_setting(name))
}

/// The line without its comment and without the inside of string literals.
fn code_of(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut in_string = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            '\'' if !in_string && chars.peek() == Some(&'"') => {
                // The character literal of a quotation mark opens no string.
                chars.next();
            }
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if !in_string => code.push(c),
            _ => {}
        }
    }
    code
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

/// Whether `folder` starts a path in `line`, and is not the middle of a relative path or a link.
fn names_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.' | '}' | '/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(file: &str, text: &str) -> Vec<String> {
        findings_in(Path::new(file), text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unsafe_code_is_found_outside_the_boundary() {
        let text = "fn f() {\n    unsafe { g() }\n}\n";
        let found = messages("crates/vlm-data/src/lib.rs", text);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("crates/vlm-data/src/lib.rs:2: unsafe code"), "{found:?}");
        assert!(messages("crates/vlm-torch/src/ffi.rs", text).is_empty());
        assert!(messages("xtask/src/sys.rs", text).is_empty());
    }

    #[test]
    fn flags_and_unknown_settings_are_found_in_messages_of_libraries() {
        let text = "/// Not `unknown`, nor --flag.\n\"raise `max_seq_len`, see `git lfs pull`\"\n\
                    \"raise --max-seq-len\"\n\"raise `max_seq_length`\"\n";
        let found = messages("crates/vlm-data/src/chat.rs", text);
        assert!(found.len() == 2 && found[0].contains("chat.rs:3:"), "{found:?}");
        assert!(found[1].contains("`max_seq_length`"), "{found:?}");
        assert!(messages("crates/vlm-cli/src/main.rs", text).is_empty());
    }

    #[test]
    fn comments_strings_and_longer_names_are_not_code() {
        let text = "//! not unsafe\nlet s = \"unsafe\"; // unsafe\n#![forbid(unsafe_code)]\n";
        assert!(messages("crates/vlm-data/src/lib.rs", text).is_empty());
        assert_eq!(code_of("let q = '\"'; unsafe { f() }"), "let q = '; unsafe { f() }");
        assert_eq!(code_of(r#"let s = "a\" // b"; g()"#), "let s = ; g()");
    }

    #[test]
    fn paths_of_one_machine_and_registries_are_found_in_any_text() {
        let text = format!("see {}ada/data\nok\nfrom {}\n", PRIVATE_FOLDERS[0], REGISTRY_HOSTS[0]);
        let found = messages("docs/notes.md", &text);
        assert_eq!(found.len(), 2);
        assert!(
            found[0].starts_with("docs/notes.md:1:") && found[1].starts_with("docs/notes.md:3:")
        );
    }

    #[test]
    fn relative_paths_and_links_are_not_paths_of_one_machine() {
        let text = format!("target{0}x\nhttps://example.net{0}x\n", PRIVATE_FOLDERS[2]);
        assert!(messages("docs/notes.md", &text).is_empty());
    }
}
