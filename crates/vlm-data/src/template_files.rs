//! Finds the chat template of a tokenizer in one of five places, in the same order as Hugging
//! Face's processors and tokenizers.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::DataError;
use crate::json_file::read_json;
use crate::limits::MAX_TEMPLATE_BYTES;

/// Folders with one template per file; transformers writes the second name.
const FOLDERS: [&str; 2] = ["chat_templates", "additional_chat_templates"];

/// The chat template: from `chat_template.jinja`, else from `chat_template.json` (of a processor),
/// else from `tokenizer_config.json`, whose content is `config`, else from a folder of templates.
/// Of several templates the one called "default" is used, or the only one.
///
/// # Errors
/// A file that cannot be read; no template; several templates without a default.
pub(crate) fn chat_template(dir: &Path, config: &Value) -> Result<String, DataError> {
    let (path, template) = find(dir, config)?.ok_or_else(|| {
        DataError::content(
            dir,
            "no chat template: expected the file chat_template.jinja or chat_template.json, or \
             \"chat_template\" in tokenizer_config.json; the tokenizer of a base model has none: \
             use that of the chat model",
        )
    })?;
    if template.len() > MAX_TEMPLATE_BYTES {
        let problem = format!(
            "the chat template has {} bytes; the limit is {MAX_TEMPLATE_BYTES}",
            template.len()
        );
        return Err(DataError::content(&path, problem));
    }
    Ok(template)
}

fn find(dir: &Path, config: &Value) -> Result<Option<(PathBuf, String)>, DataError> {
    let file = dir.join("chat_template.jinja");
    if file.is_file() {
        return Ok(Some((file.clone(), read(&file)?)));
    }
    let file = dir.join("chat_template.json");
    if file.is_file() {
        let value = read_json(&file)?;
        let template = value.get("chat_template").unwrap_or(&value);
        let template = of_value(&file, template)?.ok_or_else(|| {
            DataError::content(&file, "expected \"chat_template\" as text or as a list of texts")
        })?;
        return Ok(Some((file, template)));
    }
    let file = dir.join("tokenizer_config.json");
    if let Some(template) = of_value(&file, &config["chat_template"])? {
        return Ok(Some((file, template)));
    }
    for name in FOLDERS {
        let folder = dir.join(name);
        if folder.is_dir() {
            return of_folder(&folder);
        }
    }
    Ok(None)
}

fn read(file: &Path) -> Result<String, DataError> {
    std::fs::read_to_string(file).map_err(DataError::io(file, "read the chat template"))
}

/// A template given as text, as a list of `{"name", "template"}`, or as an object of names.
fn of_value(path: &Path, value: &Value) -> Result<Option<String>, DataError> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named: Vec<(String, String)> = match value {
        Value::String(template) => return Ok(Some(template.clone())),
        Value::Array(list) => list
            .iter()
            .filter_map(|item| Some((text(&item["name"])?, text(&item["template"])?)))
            .collect(),
        Value::Object(object) => object
            .iter()
            .filter_map(|(name, template)| Some((name.clone(), text(template)?)))
            .collect(),
        _ => Vec::new(),
    };
    choose(path, named)
}

fn of_folder(folder: &Path) -> Result<Option<(PathBuf, String)>, DataError> {
    let listed = std::fs::read_dir(folder).map_err(DataError::io(folder, "list the folder"))?;
    let mut files: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jinja"));
    files.sort();
    let name = |file: &PathBuf| file.file_stem().unwrap_or_default().display().to_string();
    let chosen = choose(folder, files.iter().map(|file| (name(file), file.clone())).collect())?;
    chosen.map(|file| Ok((file.clone(), read(&file)?))).transpose()
}

/// The item called "default", else the only one.
fn choose<T>(path: &Path, mut named: Vec<(String, T)>) -> Result<Option<T>, DataError> {
    if let Some(at) = named.iter().position(|(name, _)| name == "default") {
        return Ok(Some(named.swap_remove(at).1));
    }
    if named.len() > 1 {
        let names: Vec<_> = named.iter().map(|(name, _)| name.as_str()).collect();
        let problem = format!(
            "expected one chat template or one called \"default\", found {}: {}; write the one to \
             use into the file chat_template.jinja",
            named.len(),
            names.join(", ")
        );
        return Err(DataError::content(path, problem));
    }
    Ok(named.pop().map(|(_, item)| item))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(dir: &Path, config: Value) -> Result<String, String> {
        chat_template(dir, &config).map_err(|e| e.to_string())
    }

    #[test]
    fn the_first_place_that_has_a_template_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let none = json!({});
        assert!(found(dir.path(), none.clone()).unwrap_err().contains("no chat template"));
        for (folder, expected) in [("additional_chat_templates", "b"), ("chat_templates", "a")] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            write(&format!("{folder}/only.jinja"), expected);
            write(&format!("{folder}/readme.txt"), "x");
            assert_eq!(found(dir.path(), none.clone()).unwrap(), expected);
        }
        write("chat_templates/rag.jinja", "x");
        let error = found(dir.path(), none.clone()).unwrap_err();
        assert!(error.contains("found 2") && error.contains("only, rag"), "{error}");
        write("chat_templates/default.jinja", "c");
        assert_eq!(found(dir.path(), none).unwrap(), "c");
        let config = json!({ "chat_template": "d" });
        assert_eq!(found(dir.path(), config.clone()).unwrap(), "d");
        write("chat_template.json", r#"{"chat_template": "e"}"#);
        assert_eq!(found(dir.path(), config.clone()).unwrap(), "e");
        write("chat_template.json", "{}");
        assert!(found(dir.path(), config.clone()).unwrap_err().contains("chat_template.json"));
        write("chat_template.jinja", "f");
        assert_eq!(found(dir.path(), config.clone()).unwrap(), "f");
        write("chat_template.jinja", &"f".repeat(MAX_TEMPLATE_BYTES + 1));
        assert!(found(dir.path(), config).unwrap_err().contains("the limit is"));
    }

    #[test]
    fn names_are_read_from_a_list_and_from_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let list = |names: &[&str]| -> Value {
            names.iter().map(|name| json!({ "name": name, "template": name })).collect()
        };
        for (template, expected) in [
            (list(&["tool_use", "default"]), "default"),
            (list(&["rag"]), "rag"),
            (json!({ "rag": "a", "default": "b" }), "b"),
        ] {
            assert_eq!(found(dir.path(), json!({ "chat_template": template })).unwrap(), expected);
        }
        let error = found(dir.path(), json!({ "chat_template": list(&["rag", "tool_use"]) }));
        assert!(error.unwrap_err().contains("rag, tool_use"));
    }
}
