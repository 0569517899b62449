//! Flattens a tree of settings, so that two trees can be compared entry by entry.

use std::collections::BTreeMap;

use serde_json::Value;

/// The JSON text of every value of `tree` that is not an object, by its dotted path:
/// `optim.learning_rate` → `0.0004`.
pub(crate) fn leaves(tree: &Value) -> BTreeMap<String, String> {
    fn walk(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, found);
                }
            }
            other => {
                found.insert(path.to_owned(), other.to_string());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", tree, &mut found);
    found
}
