//! `cargo deny`, where it is installed: licences, duplicate and forbidden crates and their sources,
//! and security advisories where their database can be reached.

use anyhow::{Context, Result};

use crate::program::succeeds;
use crate::workspace::Workspace;

/// Runs the checks of `deny.toml`. Returns `false` if one of them fails; says what was skipped.
///
/// # Errors
/// Cargo cannot be started.
pub fn passes(workspace: &Workspace) -> Result<bool> {
    if !succeeds(workspace.cargo().args(["deny", "--version"]))? {
        eprintln!(
            "skipped: cargo-deny is not installed (`cargo install cargo-deny`); the licences are \
             checked above, security advisories are not"
        );
        return Ok(true);
    }
    let mut rules = workspace.cargo();
    rules.args(["deny", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    let has_passed = rules.status().context("starting cargo deny")?.success();
    // Without a network the advisories cannot be checked, which is no fault of this checkout.
    if !succeeds(workspace.cargo().args(["deny", "fetch", "db"]))? {
        eprintln!("skipped: the database of security advisories cannot be reached");
        return Ok(has_passed);
    }
    let mut advisories = workspace.cargo();
    advisories.args(["deny", "check", "--hide-inclusion-graph", "--disable-fetch", "advisories"]);
    Ok(advisories.status().context("starting cargo deny")?.success() && has_passed)
}
