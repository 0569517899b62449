//! Rules on the pages for people: the README in two languages says the same, links lead somewhere,
//! and the book contains every page.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Finding;
use crate::workspace::Workspace;

const README: &str = "README.md";
const TRANSLATION: &str = "README.zh-CN.md";
const BOOK: &str = "docs/SUMMARY.md";

/// Reads the READMEs and the pages of `docs`.
pub fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let root = workspace.root();
    let read =
        |name: &str| fs::read_to_string(root.join(name)).with_context(|| format!("reading {name}"));
    let mut findings = compare(&read(README)?, &read(TRANSLATION)?);

    let mut pages: Vec<PathBuf> = [README, TRANSLATION, "ARCHITECTURE.md"].map(Into::into).into();
    let summary = read(BOOK)?;
    for entry in fs::read_dir(root.join("docs")).context("reading docs")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".md") {
            continue;
        }
        if name != "SUMMARY.md" && !summary.contains(&format!("({name})")) {
            findings.push(finding(BOOK, 1, format!("the page {name} is missing")));
        }
        pages.push(Path::new("docs").join(name));
    }
    for page in pages {
        let folder = page.parent().unwrap_or(Path::new(""));
        let text = read(&page.to_string_lossy())?;
        for (line, target) in links(&text) {
            if !root.join(folder).join(&target).exists() {
                let message = format!("the link leads to {target}, which does not exist");
                findings.push(finding(&page, line, message));
            }
        }
    }
    Ok(findings)
}

fn finding(file: impl AsRef<Path>, line: usize, message: String) -> Finding {
    Finding { file: file.as_ref().into(), line, message }
}

/// Differences between the outline of the README and that of its translation.
fn compare(readme: &str, translation: &str) -> Vec<Finding> {
    let (ours, theirs) = (outline(readme), outline(translation));
    let pairs = ours.iter().zip(&theirs);
    if let Some((ours, theirs)) = pairs.clone().find(|(ours, theirs)| ours.1 != theirs.1) {
        let message = format!(
            "this is `{}`, and in line {} of {README} it is `{}`: both pages must have the same \
             headings, commands and code",
            theirs.1, ours.0, ours.1
        );
        return vec![finding(TRANSLATION, theirs.0, message)];
    }
    match ours.get(theirs.len()).or(theirs.get(ours.len())) {
        None => Vec::new(),
        Some((line, text)) => {
            let longer = if ours.len() > theirs.len() { README } else { TRANSLATION };
            let message = format!("the page in the other language has no `{text}`");
            vec![finding(longer, *line, message)]
        }
    }
}

/// What must be the same in all languages, with line numbers from 1: the levels of headings, and the
/// lines of code without their comments.
fn outline(page: &str) -> Vec<(usize, String)> {
    let mut in_code = false;
    let mut outline = Vec::new();
    for (index, line) in page.lines().enumerate() {
        let text = if line.starts_with("```") {
            in_code = !in_code;
            line
        } else if in_code {
            line.split(" # ").next().unwrap_or_default().trim_end()
        } else if line.starts_with('#') {
            line.split(' ').next().unwrap_or_default()
        } else {
            continue;
        };
        outline.push((index + 1, text.to_owned()));
    }
    outline
}

/// Targets of the links to files, with line numbers from 1.
fn links(page: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (index, line) in page.lines().enumerate() {
        for after in line.split("](").skip(1) {
            let target = after.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                links.push((index + 1, target.to_owned()));
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# vlm\nText.\n```sh\nvlm eval   # what it does\n```\n## End [a](b.md#c)\n";

    #[test]
    fn a_translation_may_differ_in_text_and_comments_only() {
        let translated = PAGE.replace("Text", "文").replace("what it does", "作用");
        assert_eq!(compare(PAGE, &translated), []);
        let other = PAGE.replace("vlm eval", "vlm generate");
        let found = compare(PAGE, &other);
        assert_eq!(found[0].line, 4);
        assert!(found[0].message.contains("`vlm generate`"), "{}", found[0].message);
        let shorter = PAGE.replace("## End", "End");
        assert_eq!(
            compare(PAGE, &shorter)[0].message,
            "the page in the other language has no `##`"
        );
    }

    #[test]
    fn links_to_files_are_found_without_their_anchors() {
        assert_eq!(links(PAGE), [(6, "b.md".to_owned())]);
        assert_eq!(links("[x](https://example.com) [y](#here)"), []);
    }
}
