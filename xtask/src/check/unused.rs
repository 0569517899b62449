//! Dependencies that a crate lists and does not name in its sources.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::finding::Finding;
use crate::workspace::Workspace;

/// Dependencies that are used without being named, each with its reason.
const USED_UNNAMED: [(&str, &str); 3] = [
    ("serde_core", "xtask builds it with the features that axum enables in vlm"),
    ("smallvec", "xtask builds it with the features that hyper enables in vlm"),
    ("torch-sys", "vlm-torch's build script reads where torch-sys found libtorch"),
];

/// Looks for each dependency of each crate in the crate's Rust files.
///
/// # Errors
/// A manifest or source file that cannot be read.
pub fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let root = workspace.root();
    let mut packages = ["xtask", "tests", "fuzz"].map(|name| Path::new(name).to_owned()).to_vec();
    for entry in fs::read_dir(root.join("crates")).context("reading crates")? {
        packages.push(Path::new("crates").join(entry.context("reading crates")?.file_name()));
    }
    packages.sort();
    let mut findings = Vec::new();
    for package in packages {
        let manifest = package.join("Cargo.toml");
        let text = fs::read_to_string(root.join(&manifest))
            .with_context(|| format!("reading {}", manifest.display()))?;
        let mut sources = String::new();
        add_sources(&root.join(&package), &mut sources)?;
        findings.extend(unused(&manifest, &text, &sources)?);
    }
    Ok(findings)
}

/// Appends every Rust file below `folder` to `sources`.
fn add_sources(folder: &Path, sources: &mut String) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.is_dir() {
            add_sources(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path);
            *sources += &text.with_context(|| format!("reading {}", path.display()))?;
        }
    }
    Ok(())
}

fn unused(manifest: &Path, text: &str, sources: &str) -> Result<Vec<Finding>> {
    let parsed: toml::Table =
        toml::from_str(text).with_context(|| format!("reading {}", manifest.display()))?;
    let names = ["dependencies", "dev-dependencies", "build-dependencies"]
        .into_iter()
        .filter_map(|section| parsed.get(section)?.as_table())
        .flat_map(|section| section.keys());
    let is_unused = |name: &&String| {
        !names_crate(sources, &name.replace('-', "_"))
            && !USED_UNNAMED.iter().any(|(unnamed, _)| unnamed == name)
    };
    let finding = |name: &String| Finding {
        file: manifest.to_owned(),
        line: text.lines().position(|line| line.starts_with(name.as_str())).map_or(1, |at| at + 1),
        message: format!("{name} is not used: remove it from the dependencies"),
    };
    Ok(names.filter(is_unused).map(finding).collect())
}

/// Whether the crate's name stands in the sources as a whole word that is part of a path or a `use`.
fn names_crate(sources: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    sources.match_indices(name).any(|(at, _)| {
        let (before, after) = (&sources[..at], &sources[at + name.len()..]);
        !before.ends_with(is_word)
            && (after.starts_with("::")
                || (before.ends_with("use ") && !after.starts_with(is_word)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_that_no_source_names_is_found_with_its_line() {
        let manifest = "[package]\nname = \"a\"\n\n[dependencies]\nserde-json.workspace = true\n\
                        half.workspace = true\n\n[dev-dependencies]\nzip = \"6\"\n";
        let sources = "use serde_json::Value;\nlet my_half::x; // half of it\n";
        let found = unused(Path::new("a/Cargo.toml"), manifest, sources).unwrap();
        let found: Vec<String> = found.iter().map(Finding::to_string).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a/Cargo.toml:6: half is not used"), "{found:?}");
        assert!(found[1].starts_with("a/Cargo.toml:9: zip is not used"), "{found:?}");
    }
}
