//! Writes the tables of `docs/flags.md` from the list of settings.

use std::fmt::Write;

use anyhow::{Context, Result};
use vlm_config::{Layers, Setting, Stage, settings, shown_value, with_flags};

use crate::workspace::Workspace;

/// Path of the page.
pub const PAGE: &str = "docs/flags.md";
/// The lines before and after the tables.
const BEGIN: &str = "<!-- Made by `cargo xtask docs` from the settings in crates/vlm-config. -->";
const END: &str = "<!-- End of what `cargo xtask docs` makes. -->";

/// `cargo xtask docs`: writes the tables into the page.
pub fn write(workspace: &Workspace) -> Result<()> {
    let path = workspace.root().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    std::fs::write(&path, updated(&page)?).with_context(|| path.display().to_string())
}

/// Whether the tables of the page agree with the list of settings.
pub fn is_current(workspace: &Workspace) -> Result<bool> {
    let path = workspace.root().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(updated(&page)? == page)
}

/// The page with its tables replaced by current ones.
fn updated(page: &str) -> Result<String> {
    let missing = || format!("{PAGE}: expected the lines {BEGIN:?} and {END:?}");
    let (before, rest) = page.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}\n{}{END}{after}", tables()))
}

/// A table of settings for each heading.
fn tables() -> String {
    let sft = Layers::new(Stage::Sft);
    let mut text = String::new();
    let mut heading = "";
    for setting in settings() {
        if setting.heading != heading {
            heading = setting.heading;
            _ = write!(text, "\n### {heading}\n\n| flag | default | |\n|---|---|---|\n");
        }
        _ = writeln!(text, "{}", row(setting, &sft));
    }
    text.push('\n');
    text
}

fn row(setting: &Setting, sft: &Layers) -> String {
    let mut names = format!("`--{}`", setting.name);
    for other in setting.traits.aliases.iter().copied().chain(setting.opposite.as_deref()) {
        _ = write!(names, ", `--{other}`");
    }
    let mut default = setting.default_text().unwrap_or_default();
    match sft.get(&setting.path).filter(|value| **value != setting.default) {
        Some(value) if setting.traits.default_text.is_none() => {
            let value = if value == true { "yes".to_owned() } else { shown_value(value) };
            _ = write!(default, "; in sft {value}");
        }
        _ => {}
    }
    let range = match setting.range() {
        Some(range) => format!(" It is {range}."),
        None => String::new(),
    };
    let shown = |text: &str| with_flags(text).replace('|', "\\|");
    format!("| {names} | {} | {}{range} |", shown(&default), shown(&setting.doc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_row_with_its_default_and_range() {
        let text = tables();
        assert!(text.contains("| `--epochs` | 4; in sft 6 | Number of passes"), "{text}");
        assert!(text.contains("`--dim`, `--hidden-size`"));
        assert!(text.contains("`--shuffle`, `--no-shuffle`"));
        assert!(text.contains("It is at least 0 and at most 1."));
        assert!(!text.contains("--progress"));
    }

    #[test]
    fn the_rest_of_the_page_is_kept_and_a_page_without_the_markers_is_an_error() {
        let page = format!("a\n{BEGIN}\nwhat stood here\n{END}\nb\n");
        let new = updated(&page).unwrap();
        assert!(
            new.starts_with("a\n") && new.ends_with("\nb\n") && !new.contains("what stood here")
        );
        assert_eq!(updated(&new).unwrap(), new);
        assert!(updated("a").is_err());
    }
}
