//! Rules on the pages for people: the README in two languages says the same, links lead to a file
//! and a heading that exist, and the book contains every page and can be made without a warning.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::finding::Finding;
use crate::workspace::Workspace;

const README: &str = "README.md";
const TRANSLATION: &str = "README.zh-CN.md";
const BOOK: &str = "docs/SUMMARY.md";

/// The pages outside of `docs`.
const PAGES: [&str; 6] =
    [README, TRANSLATION, "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "data/README.md"];

/// Reads the READMEs and the pages of `docs`.
pub fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let root = workspace.root();
    let read =
        |name: &str| fs::read_to_string(root.join(name)).with_context(|| format!("reading {name}"));
    let mut findings = compare(&read(README)?, &read(TRANSLATION)?);

    let mut pages: Vec<PathBuf> = PAGES.map(Into::into).into();
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
        let text = read(&page.to_string_lossy())?;
        for (line, target, anchor) in links(&text) {
            if let Some(message) = broken_link(root, &page, &target, &anchor)? {
                findings.push(finding(&page, line, message));
            }
        }
        for (line, tag) in html_tags(&text) {
            let message = format!("the text {tag} is read as an HTML tag: write `{tag}` as code");
            findings.push(finding(&page, line, message));
        }
    }
    Ok(findings)
}

/// What is wrong with a link of `page` to the file `target`, or to the page itself if that is
/// empty, and there to the heading `anchor`, if that is not empty.
fn broken_link(root: &Path, page: &Path, target: &str, anchor: &str) -> Result<Option<String>> {
    let file = match target {
        "" => root.join(page),
        target => root.join(page).with_file_name(target),
    };
    if !file.exists() {
        return Ok(Some(format!("the link leads to {target}, which does not exist")));
    }
    if page.starts_with("docs") && target.starts_with("..") {
        return Ok(Some(format!("the link leads to {target}, which is not part of the book")));
    }
    if anchor.is_empty() {
        return Ok(None);
    }
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let is_known = anchors(&text).iter().any(|known| known == anchor);
    Ok((!is_known).then(|| format!("no heading of {} has the anchor #{anchor}", file.display())))
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

/// The links to files and headings, with line numbers from 1: the file, which is empty for the page
/// itself, and the anchor, which is empty for the whole page.
fn links(page: &str) -> Vec<(usize, String, String)> {
    let mut links = Vec::new();
    for (line, text) in text_lines(page) {
        for after in text.split("](").skip(1) {
            let link = after.split(')').next().unwrap_or_default();
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            if !link.contains("://") {
                links.push((line, target.to_owned(), anchor.to_owned()));
            }
        }
    }
    links
}

/// The anchors that GitHub and mdbook give the headings of a page: the words in lower case, joined
/// by hyphens, without punctuation.
fn anchors(page: &str) -> Vec<String> {
    let headings = text_lines(page).into_iter().filter(|(_, line)| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim())).collect()
}

/// Texts such as `<video>` outside of code, with line numbers from 1: browsers do not show them.
fn html_tags(page: &str) -> Vec<(usize, String)> {
    let mut tags = Vec::new();
    for (line, text) in text_lines(page) {
        // Every second part is between backticks.
        for part in text.replace("``", "`").split('`').step_by(2) {
            for (start, _) in part.match_indices('<') {
                let rest = &part[start..];
                let is_escaped = part[..start].ends_with('\\');
                let is_name = |c: char| c.is_ascii_alphabetic() || c == '/';
                let is_tag = rest[1..].starts_with(is_name) && !rest.starts_with("<http");
                if let Some(end) = rest.find('>').filter(|_| is_tag && !is_escaped) {
                    tags.push((line, rest[..=end].to_owned()));
                }
            }
        }
    }
    tags
}

/// The lines of a page that are not in a block of code, with line numbers from 1.
fn text_lines(page: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    let mut lines = Vec::new();
    for (index, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            lines.push((index + 1, line));
        }
    }
    lines
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
    fn links_are_found_with_their_anchors() {
        let link = |line, file: &str, anchor: &str| (line, file.to_owned(), anchor.to_owned());
        assert_eq!(links(PAGE), [link(6, "b.md", "c")]);
        assert_eq!(links("[x](https://example.com#a) [y](#here)"), [link(1, "", "here")]);
    }

    #[test]
    fn a_link_must_lead_to_a_heading_and_stay_in_the_book() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("docs")).unwrap();
        fs::write(root.join("docs/b.md"), "# The GPU's memory, `x_y`\n```\n# no\n```\n").unwrap();
        fs::write(root.join("a.md"), "text").unwrap();
        let broken = |page: &str, target: &str, anchor: &str| {
            broken_link(root, Path::new(page), target, anchor).unwrap()
        };
        assert_eq!(broken("a.md", "docs/b.md", "the-gpus-memory-x_y"), None);
        assert_eq!(broken("docs/b.md", "", "the-gpus-memory-x_y"), None);
        assert!(broken("a.md", "docs/b.md", "no").unwrap().ends_with("has the anchor #no"));
        assert!(broken("a.md", "c.md", "").unwrap().contains("c.md, which does not exist"));
        assert!(broken("docs/b.md", "../a.md", "").unwrap().contains("not part of the book"));
    }

    #[test]
    fn tags_outside_of_code_are_found() {
        let page = "the <video> tag, `<image>`\n```\n<b>\n```\n<https://a.b> 1 < 2 \\<think>";
        assert_eq!(html_tags(page), [(1, "<video>".to_owned())]);
    }
}
