//! The JSON schema of configuration files, for editors.

use serde_json::{Map, Value, json};

use crate::setting::Setting;
use crate::train::settings;

/// The JSON schema (draft 2020-12) of a configuration file or recipe: every setting by name, and
/// the tables of the stages.
pub fn json_schema() -> Value {
    let mut properties = Map::new();
    for setting in settings() {
        let schema = of_setting(setting);
        if let Some(opposite) = &setting.opposite {
            let text = format!("The opposite of {}.", setting.name);
            properties.insert(opposite.clone(), json!({"type": "boolean", "description": text}));
        }
        properties.insert(setting.name.clone(), schema);
    }
    let of_stage = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    properties.insert("description".into(), json!({"type": "string"}));
    properties.insert("stage".into(), json!({"enum": ["pretrain", "sft"]}));
    for stage in ["pretrain", "sft"] {
        let mut of_stage = of_stage.clone();
        of_stage["description"] = format!("Settings of the stage {stage} alone.").into();
        properties.insert(stage.into(), of_stage);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of vlm pretrain and vlm sft",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

fn of_setting(setting: &Setting) -> Value {
    let mut schema = setting.kind.schema();
    schema["description"] = setting.doc.clone().into();
    match setting.default_text().filter(|_| setting.traits.default_text.is_some()) {
        Some(text) => {
            schema["description"] = format!("{} Default: {text}.", setting.doc).into();
        }
        None if !setting.default.is_null() => schema["default"] = setting.default.clone(),
        None => {}
    }
    let traits = &setting.traits;
    for (key, bound) in [
        ("minimum", traits.at_least),
        ("exclusiveMinimum", traits.above),
        ("maximum", traits.at_most),
    ] {
        let Some(bound) = bound else { continue };
        // Each number of a pair must be within the range.
        let numbers = if schema["items"].is_object() { &mut schema["items"] } else { &mut schema };
        numbers[key] = bound.into();
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_has_every_setting_with_its_range_and_default() {
        let schema = json_schema();
        let properties = &schema["properties"];
        assert_eq!(properties["epochs"]["minimum"], 1.0);
        assert_eq!(properties["epochs"]["default"], 4);
        assert_eq!(properties["learning-rate"]["exclusiveMinimum"], 0.0);
        assert_eq!(properties["padding"]["enum"], json!(["longest", "max", "none"]));
        assert_eq!(properties["betas"]["items"]["minimum"], 0.0);
        assert_eq!(properties["no-shuffle"]["type"], "boolean");
        assert!(properties["sft"]["properties"]["epochs"].is_object());
        for setting in settings() {
            assert!(properties[&setting.name].is_object());
        }
    }
}
