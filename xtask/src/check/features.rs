//! One set of features for every build: where a build of one program enables other features of a
//! dependency than the build of the tests, that dependency and all that uses it compile twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Result;

use super::finding::Finding;
use crate::program::output_of;
use crate::workspace::Workspace;

/// The programs that are built apart from the tests.
const PROGRAMS: [&str; 2] = ["xtask", "vlm-cli"];

/// A package's name and version → the sets of features that it is built with.
type Features = BTreeMap<String, BTreeSet<String>>;

/// Asks `cargo tree` for the features of each program's build and of the tests'.
pub fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let tests = features(workspace, &["--workspace", "--edges", "normal,build,dev"])?;
    let mut findings = Vec::new();
    for program in PROGRAMS {
        let own = features(workspace, &["--package", program, "--edges", "normal,build"])?;
        findings.extend(differences(program, &own, &tests));
    }
    Ok(findings)
}

fn features(workspace: &Workspace, selection: &[&str]) -> Result<Features> {
    let mut cargo = workspace.cargo();
    let cargo = cargo.arg("tree").args(selection).args(["--prefix", "none"]);
    let doing = format!("cargo tree {}", selection.join(" "));
    Ok(parse(&output_of(cargo.args(["--format", "{p}|{f}"]), &doing)?))
}

/// One `package|features` a line, some with a mark that they were listed before.
fn parse(tree: &str) -> Features {
    let mut all = Features::new();
    for line in tree.lines() {
        if let Some((package, features)) = line.trim_end_matches(" (*)").split_once('|') {
            all.entry(package.to_owned()).or_default().insert(features.to_owned());
        }
    }
    all
}

fn differences(program: &str, own: &Features, tests: &Features) -> Vec<Finding> {
    let none = BTreeSet::new();
    own.iter()
        .filter_map(|(package, sets)| {
            let in_tests = tests.get(package).unwrap_or(&none);
            let other = sets.iter().find(|set| !in_tests.contains(*set))?;
            let in_tests: Vec<_> = in_tests.iter().map(String::as_str).collect();
            Some(Finding {
                file: PathBuf::from("Cargo.toml"),
                line: 1,
                message: format!(
                    "{package} is built with the features [{other}] for {program} and with [{}] for \
                     the tests, so it compiles twice: enable the same ones in both",
                    in_tests.join("] or [")
                ),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_of_one_build_alone_is_named() {
        let tests =
            parse("a v1.0.0|default,std\nb v1.0.0|std\nb v1.0.0|\na v1.0.0|default,std (*)\n");
        assert_eq!(differences("xtask", &parse("a v1.0.0|default,std\nb v1.0.0|\n"), &tests), []);
        let found = differences("xtask", &parse("a v1.0.0|std\n"), &tests);
        assert_eq!(found.len(), 1);
        let message = &found[0].message;
        assert!(message.contains("a v1.0.0") && message.contains("[default,std]"), "{message}");
    }
}
