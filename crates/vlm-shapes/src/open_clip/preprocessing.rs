//! The image preprocessing of open_clip in the form of `preprocessor_config.json`.

use serde_json::{Value, json};

use super::OpenClip;
use crate::ShapeError;
use crate::config_file::in_file;
use crate::keys::shortened;

impl OpenClip {
    /// The preprocessing as `preprocessor_config.json`.
    ///
    /// # Errors
    /// A setting that is not supported; the message names it.
    pub fn preprocessing(&self) -> Result<Value, ShapeError> {
        self.settings().map_err(in_file(&self.path))
    }

    fn settings(&self) -> Result<Value, ShapeError> {
        // The size is that of the tower, also in open_clip. The colour fills what is padded.
        const READ: [&str; 6] =
            ["mean", "std", "interpolation", "resize_mode", "size", "fill_color"];
        let given = &self.json["preprocess_cfg"];
        if let Some(given) = given.as_object() {
            let is_known = |key: &str, value: &Value| {
                READ.contains(&key) || value.is_null() || key == "mode" && *value == "RGB"
            };
            let unknown = given.iter().find(|(key, value)| !is_known(key, value));
            if let Some((key, value)) = unknown {
                return Err(ShapeError::Config(format!(
                    "preprocess_cfg: {key} is {}, which is not supported",
                    shortened(value)
                )));
            }
        }
        let side = self.image_size()?;
        let square = json!({"height": side, "width": side});
        let mut settings = match given["resize_mode"].as_str().unwrap_or("shortest") {
            "shortest" => json!({
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": side},
                "crop_size": square,
            }),
            "squash" => json!({
                "image_processor_type": "SiglipImageProcessor",
                "size": square,
            }),
            other => {
                return Err(ShapeError::Config(format!(
                    "preprocess_cfg: resize_mode is {other:?}, which pads images and is not \
                     supported; expected \"shortest\" or \"squash\""
                )));
            }
        };
        // Those of OpenAI's CLIP are the default for every resize_mode.
        for (key, name, default) in [
            ("image_mean", "mean", [0.48145466, 0.4578275, 0.40821073]),
            ("image_std", "std", [0.26862954, 0.26130258, 0.27577711]),
        ] {
            let value = &given[name];
            settings[key] = if value.is_null() { json!(default) } else { value.clone() };
        }
        settings["resample"] = match given["interpolation"].as_str().unwrap_or("bicubic") {
            // "random" is random only in training.
            "bicubic" | "random" => json!(3),
            "bilinear" => json!(2),
            other => {
                return Err(ShapeError::Config(format!(
                    "preprocess_cfg: interpolation is {other:?}; expected \"bicubic\" or \
                     \"bilinear\""
                )));
            }
        };
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::tower;

    #[test]
    fn the_preprocessing_is_that_of_clip_or_siglip() {
        let settings = |preprocess: Value| {
            let mut tower = tower(json!({"image_size": 32}));
            tower.json["preprocess_cfg"] = preprocess;
            tower.preprocessing().map_err(|error| error.to_string())
        };
        let default = settings(Value::Null).unwrap();
        assert_eq!(default["size"]["shortest_edge"], 32);
        assert_eq!(
            (&default["resample"], &default["image_mean"][0]),
            (&json!(3), &json!(0.48145466))
        );
        let squashed = settings(json!({"mode": "RGB", "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}));
        let squashed = squashed.unwrap();
        assert_eq!((&squashed["size"]["height"], &squashed["resample"]), (&json!(32), &json!(2)));
        assert_eq!(squashed["image_std"][2], 0.5);
        for (preprocess, expected) in [
            (json!({"resize_mode": "longest"}), "\"longest\""),
            (json!({"interpolation": "nearest"}), "\"nearest\""),
            (json!({"mode": "L"}), "mode is \"L\""),
            (json!({"use_naflex": true}), "use_naflex is true"),
        ] {
            let error = settings(preprocess).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
