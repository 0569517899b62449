//! Reads configuration files: TOML or JSON, with settings by name or in tables for the parts of the
//! configuration. The `config.json` of a run is such a file, too.

use std::path::Path;

use serde_json::{Map, Value};
use vlm_display::shorten;

use crate::error::ConfigError;
use crate::kind::MAX_SHOWN;
use crate::setting::Setting;
use crate::train::{Stage, settings};

/// Settings with their values, in the order in which they were found.
pub type Entries = Vec<(&'static Setting, Value)>;

/// Parts of the configuration, which files may have as tables.
const PARTS: [&str; 7] = ["data", "model", "model.shape", "model.freeze", "optim", "eval", "run"];

/// Key that is not a setting.
const DESCRIPTION: &str = "description";

/// The setting that `name` refers to, and whether `name` is its opposite (such as `no-shuffle`).
pub fn find(name: &str) -> Option<(&'static Setting, bool)> {
    let positive = || settings().iter().find(|setting| setting.is_called(name));
    let opposite = || {
        let dashed = name.replace('_', "-");
        settings().iter().find(|setting| setting.opposite.as_ref() == Some(&dashed))
    };
    positive().map(|setting| (setting, false)).or_else(|| opposite().map(|setting| (setting, true)))
}

/// Settings in `config.json` of earlier versions that no longer exist.
const REMOVED: [&str; 1] = ["run.progress"];

/// Reads the settings of a file for `stage`.
///
/// # Errors
/// A file that cannot be read, is neither TOML nor JSON, or has an unknown setting or a wrong
/// value; the message begins with the path.
pub fn read_file(path: &Path, stage: Stage) -> Result<Entries, ConfigError> {
    let place = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &place, stage),
        Err(source) => Err(ConfigError::Io { place, source }),
    }
}

/// The stage that a file names, as `config.json` of a run does; `None` if it cannot be read or
/// names no stage.
pub(crate) fn stage_of(path: &Path) -> Option<Stage> {
    let text = std::fs::read_to_string(path).ok()?;
    let tree: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).ok()?,
        false => toml::from_str(&text).ok()?,
    };
    let stage =
        [&tree["run"]["stage"], &tree["stage"]].into_iter().find(|stage| stage.is_string())?;
    serde_json::from_value(stage.clone()).ok()
}

/// Reads the settings of a text for `stage`; `place` names it in messages.
pub(crate) fn parse(text: &str, place: &str, stage: Stage) -> Result<Entries, ConfigError> {
    let error = |reason: String| ConfigError::Usage(format!("{place}: {reason}"));
    let tree: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| error(format!("the file is not JSON: {e}")))?
    } else {
        toml::from_str(text)
            .map_err(|e: toml::de::Error| error(with_short_lines(&e.to_string())))?
    };
    let mut reader = Reader { stage, entries: Entries::new(), is_of_run: false };
    let top = match tree.as_object() {
        // A run writes its settings under this key, next to the configuration of the model.
        Some(top) if top.get("run").is_some_and(|run| run["optim"].is_object()) => {
            reader.is_of_run = true;
            top["run"].as_object()
        }
        top => top,
    };
    let top = top.ok_or_else(|| error("expected a table of settings".into()))?;
    reader.read(top, "").map_err(error)?;
    Ok(reader.entries)
}

/// Collects the settings of a file.
struct Reader {
    stage: Stage,
    entries: Entries,
    /// Whether the file is `config.json` of a run, which holds all settings.
    is_of_run: bool,
}

impl Reader {
    /// Reads the table of the part `part`, or the whole file if `part` is empty.
    fn read(&mut self, table: &Map<String, Value>, part: &str) -> Result<(), String> {
        let first = self.entries.len();
        let mut of_stage = None;
        for (key, value) in table {
            let inner = if part.is_empty() { key.clone() } else { format!("{part}.{key}") };
            match value {
                Value::Object(table) if PARTS.contains(&inner.as_str()) => {
                    self.read(table, &inner)?;
                }
                Value::Object(table)
                    if part.is_empty() && ["pretrain", "sft"].contains(&&**key) =>
                {
                    if key == self.stage.name() {
                        of_stage = Some(table);
                    }
                }
                Value::String(stage) if part.is_empty() && key == "stage" => {
                    self.check_stage(stage)?;
                }
                Value::String(_) if part.is_empty() && key == DESCRIPTION => {}
                value => self.read_setting(key, value, part, first)?,
            }
        }
        // The table of the stage overrides the other settings, wherever it is in the file.
        match of_stage {
            Some(table) => self.read(table, ""),
            None => Ok(()),
        }
    }

    fn check_stage(&self, stage: &str) -> Result<(), String> {
        if stage == self.stage.name() {
            return Ok(());
        }
        Err(format!("the file is for the stage {stage}, but this is {}", self.stage.name()))
    }

    /// Reads one setting. `first` is the index of the first entry of its table.
    fn read_setting(
        &mut self,
        key: &str,
        value: &Value,
        part: &str,
        first: usize,
    ) -> Result<(), String> {
        let path = format!("{part}.{key}");
        let by_path = settings().iter().find(|setting| setting.path == path);
        let found = by_path.map(|setting| (setting, false)).or_else(|| find(key));
        let Some((setting, is_opposite)) = found else {
            if self.is_of_run && REMOVED.contains(&path.as_str()) {
                return Ok(());
            }
            let names: Vec<&str> = settings().iter().map(|setting| setting.name.as_str()).collect();
            return Err(format!(
                "unknown setting `{}`; the settings are {}",
                shorten(key, MAX_SHOWN),
                names.join(", ")
            ));
        };
        if self.is_of_run && setting.path == "run.resume" {
            return Ok(());
        }
        let value = match value {
            // In `config.json` of a run, no path means random weights.
            Value::Null if self.is_of_run && setting.path == "model.lm" => "none".into(),
            Value::Null => return Ok(()),
            // A path that the run did not need is empty.
            Value::String(text) if self.is_of_run && text.is_empty() => return Ok(()),
            Value::Array(values) if self.is_of_run && values.is_empty() => return Ok(()),
            value => setting.check(value.clone()).map_err(|why| format!("{key}: {why}"))?,
        };
        let value = match value {
            Value::Bool(value) if is_opposite => Value::Bool(!value),
            value => value,
        };
        let is_twice = |(other, _): &(&Setting, Value)| other.path == setting.path;
        if part.is_empty() && self.entries.iter().skip(first).any(is_twice) {
            return Err(format!("{} is set twice, under different names", setting.name));
        }
        self.entries.push((setting, value));
        Ok(())
    }
}

/// Largest number of characters of a line of the file that a message shows.
const MAX_LINE: usize = 160;

/// `message`, which repeats a line of the file, with each line shortened to [`MAX_LINE`]
/// characters.
fn with_short_lines(message: &str) -> String {
    message.lines().map(|line| shorten(line, MAX_LINE)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Result<Vec<(String, Value)>, String> {
        let read = parse(text, "run.toml", Stage::Pretrain).map_err(|e| e.to_string())?;
        Ok(read.into_iter().map(|(setting, value)| (setting.path.clone(), value)).collect())
    }

    #[test]
    fn names_with_dashes_underscores_and_parts_mean_the_same() {
        let expected = vec![("optim.batch_size".to_owned(), Value::from(8))];
        for text in
            ["batch-size = 8", "batch_size = 8", "[optim]\nbatch_size = 8", "{\"batch-size\": 8}"]
        {
            assert_eq!(entries(text).unwrap(), expected, "{text}");
        }
        let path = vec![("eval.data_path".to_owned(), Value::from("a"))];
        assert_eq!(entries("eval-data = 'a'").unwrap(), path);
        assert_eq!(entries("[eval]\ndata_path = 'a'").unwrap(), path);
        let shuffle = vec![("data.shuffle".to_owned(), Value::from(false))];
        assert_eq!(entries("no-shuffle = true").unwrap(), shuffle);
    }

    #[test]
    fn the_table_of_the_stage_overrides_and_that_of_the_other_stage_is_ignored() {
        let text = "[pretrain]\nepochs = 2\n[sft]\nepochs = 3\n";
        assert_eq!(entries(text).unwrap(), [("optim.epochs".to_owned(), Value::from(2))]);
        let text = "{\"pretrain\": {\"epochs\": 2}, \"epochs\": 1}";
        assert_eq!(entries(text).unwrap().last().unwrap().1, 2);
    }

    #[test]
    fn errors_name_the_unknown_setting_or_the_wrong_value() {
        for (text, part) in [
            ("batch_sizes = 8", "unknown setting `batch_sizes`"),
            (
                "batch-size = \"8\"",
                "batch-size: expected a whole number, not negative, found \"8\"",
            ),
            ("epochs = 0", "epochs: 0; it must be at least 1"),
            ("epochs = 2.5", "found 2.5"),
            ("learning-rate = -1", "it must be more than 0"),
            ("max-rejected-fraction = 2", "at most 1"),
            ("padding = \"square\"", "one of longest, max, none"),
            ("data-path = 3", "expected a path or a list of paths"),
            ("epochs", "line 1"),
            ("batch-size = 8\nbatch_size = 9", "twice"),
            ("stage = \"sft\"", "the file is for the stage sft, but this is pretrain"),
            ("{\"epochs\": }", "not JSON"),
        ] {
            let error = entries(text).unwrap_err();
            assert!(error.contains(part) && error.starts_with("run.toml: "), "{text}: {error}");
        }
    }

    #[test]
    fn long_lines_and_values_are_shortened_in_messages() {
        let long = "x y".repeat(2000);
        for text in [format!("padding = \"{long}\""), format!("padding = \"{long}")] {
            let error = entries(&text).unwrap_err();
            assert!(error.contains("characters)") && error.len() < 1500, "{error}");
        }
    }
}
