//! The licences of all dependencies, against the list in `deny.toml`. `cargo deny` checks more, where
//! it is installed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::finding::Finding;
use crate::program::output_of;
use crate::workspace::Workspace;

/// The rules of `cargo deny`, which have the list of licences.
const RULES: &str = "deny.toml";

/// Asks `cargo metadata` for the licence of every package.
pub fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let text = fs::read_to_string(workspace.root().join(RULES)).context("reading deny.toml")?;
    let rules: toml::Table = toml::from_str(&text).context("reading deny.toml")?;
    let allowed = rules.get("licenses").and_then(|licences| licences.get("allow"));
    let allowed = allowed.and_then(toml::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let allowed: Vec<&str> = allowed.iter().filter_map(toml::Value::as_str).collect();
    let args = ["metadata", "--format-version", "1", "--locked"];
    let metadata = output_of(workspace.cargo().args(args), "cargo metadata")?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading cargo metadata")?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(packages.iter().filter_map(|package| refused(package, &allowed)).collect())
}

fn refused(package: &Value, allowed: &[&str]) -> Option<Finding> {
    let licence = package["license"].as_str().unwrap_or("none");
    (!is_allowed(licence, allowed)).then(|| Finding {
        file: Path::new(RULES).to_owned(),
        line: 1,
        message: format!(
            "the licence of {} {} is {licence}, which is not in the list of allowed ones",
            package["name"].as_str().unwrap_or_default(),
            package["version"].as_str().unwrap_or_default()
        ),
    })
}

/// Whether an SPDX expression can be fulfilled. `/` is an older spelling of OR, and AND binds more
/// closely.
fn is_allowed(licence: &str, allowed: &[&str]) -> bool {
    let licence = licence.trim();
    let outside_parentheses = |separator: &str| {
        licence
            .match_indices(separator)
            .map(|(at, _)| at)
            .find(|&at| licence[..at].matches('(').count() == licence[..at].matches(')').count())
    };
    for (separator, is_all) in [(" OR ", false), ("/", false), (" AND ", true)] {
        if let Some(at) = outside_parentheses(separator) {
            let (left, right) = (&licence[..at], &licence[at + separator.len()..]);
            let sides = [left, right].map(|side| is_allowed(side, allowed));
            return if is_all { sides[0] && sides[1] } else { sides[0] || sides[1] };
        }
    }
    match licence.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_allowed(inner, allowed),
        None => allowed.contains(&licence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_fulfilled_by_the_allowed_licences() {
        let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
        for licence in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/GPL-3.0",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "GPL-3.0 AND MIT OR MIT",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(is_allowed(licence, &allowed), "{licence}");
        }
        for licence in ["none", "GPL-3.0", "MIT AND GPL-3.0", "(GPL-3.0 OR LGPL-2.1) AND MIT"] {
            assert!(!is_allowed(licence, &allowed), "{licence}");
        }
        let package = serde_json::json!({ "name": "a", "version": "1.0.0", "license": null });
        let message = refused(&package, &allowed).unwrap().message;
        assert!(message.contains("the licence of a 1.0.0 is none"), "{message}");
    }
}
