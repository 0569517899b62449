//! The vision encoder within a whole model, `vision_config`.

use serde_json::{Map, Value, json};

use crate::{ShapeError, VisionConfig};

/// The vision encoder's part of a configuration, with the keys of `defaults` filled in, without the
/// keys of `ignored`, and read as an encoder of the type `read_as`.
///
/// # Errors
/// `model_type` is not among `model_types`; otherwise as [`VisionConfig::from_tower_json`].
pub(super) fn read(
    json: &Value,
    model_types: &[&str],
    read_as: &str,
    defaults: &Value,
    ignored: &[&str],
) -> Result<VisionConfig, ShapeError> {
    let mut tower: Map<String, Value> =
        json["vision_config"].as_object().cloned().unwrap_or_default();
    let model_type = tower.get("model_type").and_then(Value::as_str);
    if let Some(found) = model_type.filter(|found| !model_types.contains(found)) {
        return Err(ShapeError::Config(format!(
            "model_type of vision_config is {found:?}; expected {}",
            model_types.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" or ")
        )));
    }
    tower.retain(|key, _| !ignored.contains(&key.as_str()));
    tower.insert("model_type".into(), json!(read_as));
    for (key, value) in defaults.as_object().into_iter().flatten() {
        let entry = tower.entry(key.as_str()).or_insert(Value::Null);
        if entry.is_null() {
            *entry = value.clone();
        }
    }
    VisionConfig::from_tower_json(&Value::Object(tower))
}
