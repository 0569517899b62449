//! Which crate may not know which: `cli → train → {model, data}`, and libtorch stays out of what
//! must build without it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::finding::Finding;
use crate::program::output_of;
use crate::workspace::Workspace;

/// A crate, its manifest, and what must not be among all its dependencies.
struct Rule {
    package: &'static str,
    manifest: &'static str,
    /// A name, or a prefix of names that ends in `*`.
    forbidden: &'static [&'static str],
    reason: &'static str,
}

/// Text for people, which every crate may use.
const ALLOWED_EVERYWHERE: &str = "vlm-display";

const RULES: [Rule; 12] = [
    Rule {
        package: "vlm-data",
        manifest: "crates/vlm-data/Cargo.toml",
        forbidden: &["tch", "torch-sys", "vlm-*"],
        reason: "data are rows, samples and batches on the host, without libtorch or model",
    },
    Rule {
        package: "vlm-display",
        manifest: "crates/vlm-display/Cargo.toml",
        forbidden: &["tch", "torch-sys", "vlm-*"],
        reason: "every crate may use it, so it knows none of them",
    },
    Rule {
        package: "vlm-board",
        manifest: "crates/vlm-board/Cargo.toml",
        forbidden: &["tch", "torch-sys", "tiny_http", "vlm-*"],
        reason: "the page is made from the files of a run alone, by programs that do not load libtorch",
    },
    Rule {
        package: "xtask",
        manifest: "xtask/Cargo.toml",
        forbidden: &["tch", "torch-sys", "vlm-torch", "vlm-model", "vlm-train", "vlm-cli"],
        reason: "set-up must build before libtorch is there",
    },
    Rule {
        package: "vlm-shapes",
        manifest: "crates/vlm-shapes/Cargo.toml",
        forbidden: &["tch", "torch-sys", "vlm-*"],
        reason: "configurations of models are read by programs that do not load libtorch",
    },
    Rule {
        package: "vlm-model",
        manifest: "crates/vlm-model/Cargo.toml",
        forbidden: &["vlm-data", "vlm-train", "vlm-cli"],
        reason: "the model knows tensors, not where they come from",
    },
    Rule {
        package: "vlm-config",
        manifest: "crates/vlm-config/Cargo.toml",
        forbidden: &[
            "tch", "torch-sys", "vlm-torch", "vlm-model", "vlm-infer", "vlm-train", "clap",
        ],
        reason: "settings are read by programs that do not load libtorch, and know no flags",
    },
    Rule {
        package: "vlm-infer",
        manifest: "crates/vlm-infer/Cargo.toml",
        forbidden: &["vlm-config", "vlm-train", "vlm-cli", "clap"],
        reason: "using a trained model needs no training",
    },
    Rule {
        package: "vlm-serve",
        manifest: "crates/vlm-serve/Cargo.toml",
        forbidden: &["vlm-config", "vlm-train", "vlm-cli", "clap"],
        reason: "a server needs a trained model, and knows no flags",
    },
    Rule {
        package: "vlm-demo",
        manifest: "crates/vlm-demo/Cargo.toml",
        forbidden: &["tch", "torch-sys", "vlm-model", "vlm-train", "vlm-cli", "clap"],
        reason: "the scenes are drawn without libtorch",
    },
    Rule {
        package: "vlm-torch",
        manifest: "crates/vlm-torch/Cargo.toml",
        forbidden: &["vlm-*"],
        reason: "wrappers over libtorch know nothing of this project",
    },
    Rule {
        package: "vlm-train",
        manifest: "crates/vlm-train/Cargo.toml",
        forbidden: &["vlm-cli", "clap"],
        reason: "libraries know no flags",
    },
];

/// Asks `cargo tree` about every rule.
pub fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for rule in &RULES {
        let tree = dependency_names(workspace, rule.package)?;
        let manifest = fs::read_to_string(workspace.root().join(rule.manifest))
            .with_context(|| format!("reading {}", rule.manifest))?;
        findings.extend(broken_by(rule, &tree, &manifest));
    }
    Ok(findings)
}

fn dependency_names(workspace: &Workspace, package: &str) -> Result<String> {
    let args = ["tree", "--package", package, "--edges", "normal", "--prefix", "none"];
    output_of(workspace.cargo().args(args), &format!("cargo tree --package {package}"))
}

/// `tree` has one package a line, its name first; the crate itself is the first line.
fn broken_by(rule: &Rule, tree: &str, manifest: &str) -> Vec<Finding> {
    let mut names: Vec<&str> =
        tree.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .filter(|name| *name != ALLOWED_EVERYWHERE)
        .filter(|name| rule.forbidden.iter().any(|pattern| matches(pattern, name)))
        .map(|name| Finding {
            file: Path::new(rule.manifest).to_path_buf(),
            line: line_that_names(manifest, name),
            message: format!(
                "{} must not depend on {name}: {} (see `cargo tree -p {} -e normal -i {name}`)",
                rule.package, rule.reason, rule.package
            ),
        })
        .collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// The direct dependency's line, else the first: it came through another crate.
fn line_that_names(manifest: &str, name: &str) -> usize {
    let names_it =
        |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', ' ', '=']));
    manifest.lines().position(names_it).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "[package]\nname = \"vlm-data\"\n\n[dependencies]\ntch.workspace = true\n";

    #[test]
    fn forbidden_dependency_is_named_with_its_line() {
        let tree = "vlm-data v0.1.0 (path)\nanyhow v1.0.0\ntch v0.24.0\ntch v0.24.0 (*)\n";
        let findings = broken_by(&RULES[0], tree, MANIFEST);
        assert_eq!(findings.len(), 1, "named once: {findings:?}");
        let text = findings[0].to_string();
        assert!(text.starts_with("crates/vlm-data/Cargo.toml:5: vlm-data must not depend on tch"));
    }

    #[test]
    fn indirect_dependency_points_at_the_manifest() {
        let tree = "vlm-data v0.1.0 (path)\ntorch-sys v0.24.0\n";
        assert_eq!(broken_by(&RULES[0], tree, MANIFEST)[0].line, 1);
    }

    #[test]
    fn the_crate_itself_similar_names_and_text_for_people_are_allowed() {
        let tree = "vlm-data v0.1.0 (path)\ntch-like v1.0.0\ntorch-sys-build v1.0.0\n\
                    vlm-display v0.1.0 (path)\n";
        assert_eq!(broken_by(&RULES[0], tree, MANIFEST), []);
    }
}
