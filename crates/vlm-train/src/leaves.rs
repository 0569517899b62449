//! Flattens a tree of settings, so that it can be compared or shown entry by entry.

use serde_json::Value;

/// Every value of `tree` that is not an object, with its dotted path, in the order of the tree:
/// `optim.learning_rate`, 0.0004.
pub(crate) fn leaves(tree: &Value) -> Vec<(String, &Value)> {
    fn walk<'a>(path: &str, value: &'a Value, found: &mut Vec<(String, &'a Value)>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, found);
                }
            }
            other => found.push((path.to_owned(), other)),
        }
    }
    let mut found = Vec::new();
    walk("", tree, &mut found);
    found
}
