//! Configuration files: TOML or JSON, with the settings under their names, or under the parts of the
//! tree; and the `config.json` of a run, which repeats it.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::ConfigError;
use crate::kind::cut;
use crate::setting::Setting;
use crate::train::{Stage, settings};

/// Values of settings, in the order in which they were found.
pub type Entries = Vec<(&'static Setting, Value)>;

/// Parts of the tree, which files may have as tables.
const PARTS: [&str; 7] = ["data", "model", "model.shape", "model.freeze", "optim", "eval", "run"];

/// What a file says that is no setting.
const DESCRIPTION: &str = "description";

/// The setting that `name` means, and whether it is meant as its opposite (`no-shuffle`).
pub fn find(name: &str) -> Option<(&'static Setting, bool)> {
    let positive = || settings().iter().find(|setting| setting.is_called(name));
    let opposite = || {
        let dashed = name.replace('_', "-");
        settings().iter().find(|setting| setting.opposite.as_ref() == Some(&dashed))
    };
    positive().map(|setting| (setting, false)).or_else(|| opposite().map(|setting| (setting, true)))
}

/// Settings that earlier versions wrote to `config.json`, and that no longer exist.
const REMOVED: [&str; 1] = ["run.progress"];

/// Reads the settings of a file for `stage`.
///
/// # Errors
/// A file that cannot be read, is neither TOML nor JSON, or has an unknown setting or a wrong value;
/// the message begins with the path.
pub fn read_file(path: &Path, stage: Stage) -> Result<Entries, ConfigError> {
    let place = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &place, stage),
        Err(source) => Err(ConfigError::Io { place, source }),
    }
}

/// The stage that a file says it is for, if it can be read and says one. `config.json` of a run does.
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
    let wrong = |why: String| ConfigError::Usage(format!("{place}: {why}"));
    let tree: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| wrong(format!("it is not JSON: {e}")))?
    } else {
        toml::from_str(text).map_err(|e: toml::de::Error| wrong(in_short_lines(&e.to_string())))?
    };
    let mut reader = Reader { stage, entries: Entries::new(), is_of_run: false };
    let top = match tree.as_object() {
        // A run writes its settings under this key, beside the model's configuration.
        Some(top) if top.get("run").is_some_and(|run| run["optim"].is_object()) => {
            reader.is_of_run = true;
            top["run"].as_object()
        }
        top => top,
    };
    let top = top.ok_or_else(|| wrong("expected a table of settings".into()))?;
    reader.read(top, "").map_err(wrong)?;
    Ok(reader.entries)
}

/// Collects the settings of one file.
struct Reader {
    stage: Stage,
    entries: Entries,
    /// Whether a run wrote the file: all settings are there, and some say how it was started.
    is_of_run: bool,
}

impl Reader {
    /// Reads a table: that of the part `part`, or the whole file.
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
        // The table of the stage comes last, wherever it stands: it is the more special one.
        match of_stage {
            Some(table) => self.read(table, ""),
            None => Ok(()),
        }
    }

    fn check_stage(&self, stage: &str) -> Result<(), String> {
        if stage == self.stage.name() {
            return Ok(());
        }
        Err(format!("it is for the stage {stage}, and this is {}", self.stage.name()))
    }

    /// Reads one setting; `first` is the number of the table's first entry.
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
                cut(key),
                names.join(", ")
            ));
        };
        if self.is_of_run && setting.path == "run.resume" {
            return Ok(());
        }
        let value = match value {
            // A run that began with random weights says so by the absence of a path.
            Value::Null if self.is_of_run && setting.path == "model.lm" => "none".into(),
            Value::Null => return Ok(()),
            // A path that a run did not need is empty.
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
            return Err(format!("{} is given twice, under different names", setting.name));
        }
        self.entries.push((setting, value));
        Ok(())
    }
}

/// Longest line that is shown of a file that cannot be read.
const MAX_LINE: usize = 160;

/// A message that repeats a line of the file, with long lines cut.
fn in_short_lines(message: &str) -> String {
    let cut = |line: &str| match line.chars().count() {
        length if length <= MAX_LINE => line.to_owned(),
        length => {
            let start: String = line.chars().take(MAX_LINE).collect();
            format!("{start}… ({length} characters)")
        }
    };
    message.lines().map(cut).collect::<Vec<_>>().join("\n")
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
    fn the_table_of_the_stage_comes_last_and_that_of_the_other_does_not_count() {
        let text = "[pretrain]\nepochs = 2\n[sft]\nepochs = 3\n";
        assert_eq!(entries(text).unwrap(), [("optim.epochs".to_owned(), Value::from(2))]);
        let text = "{\"pretrain\": {\"epochs\": 2}, \"epochs\": 1}";
        assert_eq!(entries(text).unwrap().last().unwrap().1, 2);
    }

    #[test]
    fn unknown_names_wrong_types_and_ranges_are_errors_that_name_them() {
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
            ("stage = \"sft\"", "it is for the stage sft, and this is pretrain"),
            ("{\"epochs\": }", "not JSON"),
        ] {
            let error = entries(text).unwrap_err();
            assert!(error.contains(part) && error.starts_with("run.toml: "), "{text}: {error}");
        }
    }

    #[test]
    fn a_long_line_or_value_is_not_repeated_whole() {
        let long = "x y".repeat(2000);
        for text in [format!("padding = \"{long}\""), format!("padding = \"{long}")] {
            let error = entries(&text).unwrap_err();
            assert!(error.contains("characters)") && error.len() < 1500, "{error}");
        }
    }
}
