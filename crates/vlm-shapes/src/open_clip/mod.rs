//! Vision towers in folders of open_clip: `open_clip_config.json` in terms of this crate's own
//! configuration, and the preprocessing in it as `preprocessor_config.json` (`preprocessing.rs`).
//!
//! `model_cfg.vision_cfg` describes a vision transformer of open_clip's own, which is CLIP's, or
//! names one of timm, of which only SigLIP's are supported (`timm.rs`). The names of the tensors are
//! not here, but in `vlm-model`.

mod preprocessing;
mod timm;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config_file::{in_file, read_json};
use crate::keys::{self, Neutral, shortened};
use crate::{ShapeError, VisionConfig, VisionFamily};

/// Name of the file with the configuration.
const FILE: &str = "open_clip_config.json";

/// Weights in Hugging Face's format, which have precedence over those of open_clip in the same
/// folder.
const HUGGING_FACE_WEIGHTS: [&str; 4] = [
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// A folder of open_clip with a vision tower.
#[derive(Debug, Clone)]
pub struct OpenClip {
    path: PathBuf,
    json: Value,
}

/// Keys of `model_cfg` that are read, or that concern only the text tower and the comparison of the
/// two towers.
const MODEL_KEYS: [&str; 11] = [
    "vision_cfg", "text_cfg", "quick_gelu", "embed_dim", "custom_text", "multimodal_cfg",
    "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "cast_dtype", "output_dict",
];

/// Keys of `vision_cfg` that are read, or that concern only the pooled output, which is not used.
const VISION_KEYS: [&str; 21] = [
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs",
    "timm_model_name", "attentional_pool", "attn_pooler_queries", "attn_pooler_heads",
    "final_ln_after_pool", "pool_type", "output_tokens", "global_average_pool", "timm_pool",
    "timm_proj", "timm_proj_bias", "timm_model_pretrained", "timm_drop", "act_kwargs",
];

/// Keys of `vision_cfg` with the only values that are supported.
const VISION_MUST_BE: [(&str, &[Neutral]); 11] = [
    ("ls_init_value", &[]),
    ("patch_dropout", &[Neutral::Number(0.0)]),
    ("no_ln_pre", &[Neutral::False]),
    ("pos_embed_type", &[Neutral::Text("learnable")]),
    ("block_type", &[Neutral::Text("default")]),
    ("qk_norm", &[Neutral::False]),
    ("scaled_cosine_attn", &[Neutral::False]),
    ("scale_heads", &[Neutral::False]),
    ("timm_drop_path", &[Neutral::Number(0.0)]),
    ("scale_attn", &[Neutral::False]),
    ("input_patchnorm", &[Neutral::False]),
];

impl OpenClip {
    /// The tower in `folder`; `None` if the folder has no `open_clip_config.json`, or a model in
    /// Hugging Face's format as well.
    ///
    /// # Errors
    /// The file cannot be read or is not JSON.
    pub fn beside(folder: &Path) -> Result<Option<Self>, ShapeError> {
        let path = folder.join(FILE);
        let is_there = |name: &&str| folder.join(name).is_file();
        let is_hugging_face = is_there(&"config.json") && HUGGING_FACE_WEIGHTS.iter().any(is_there);
        if is_hugging_face || !path.is_file() {
            return Ok(None);
        }
        Ok(Some(Self { json: read_json(&path)?, path }))
    }

    /// The path of its `open_clip_config.json`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the tower is one of timm, whose tensors have other names.
    pub fn is_timm(&self) -> bool {
        !self.tower()["timm_model_name"].is_null()
    }

    fn tower(&self) -> &Value {
        &self.json["model_cfg"]["vision_cfg"]
    }

    /// The vision tower.
    ///
    /// # Errors
    /// A tower or a setting that is not supported; the message names it.
    pub fn vision(&self) -> Result<VisionConfig, ShapeError> {
        self.unread_keys()?;
        let config = if self.is_timm() { self.timm_tower() } else { self.own_tower() };
        config.and_then(VisionConfig::validated).map_err(in_file(&self.path))
    }

    /// Unknown keys that are ignored although they have a value: worth a warning.
    ///
    /// # Errors
    /// A key may change what the tower computes; `vision_cfg` is missing.
    pub fn unread_keys(&self) -> Result<Vec<String>, ShapeError> {
        let check = || {
            let (model, tower) = (&self.json["model_cfg"], self.tower());
            let (Some(model), Some(tower)) = (model.as_object(), tower.as_object()) else {
                return Err(ShapeError::Config("expected model_cfg with a vision_cfg".into()));
            };
            let mut unread = keys::check_whole(model, &MODEL_KEYS, &[])?;
            unread.extend(keys::check_whole(tower, &VISION_KEYS, &VISION_MUST_BE)?);
            Ok(unread)
        };
        check().map_err(in_file(&self.path))
    }

    /// A vision transformer of open_clip's own: CLIP's.
    fn own_tower(&self) -> Result<VisionConfig, ShapeError> {
        let tower = self.tower();
        if tower["layers"].is_array() {
            return Err(ShapeError::Config(
                "the vision tower is a ResNet (vision_cfg.layers is a list), which is not \
                 supported; use a ViT"
                    .into(),
            ));
        }
        for key in ["act_kwargs", "norm_kwargs"] {
            let is_known = |name: &String| key == "norm_kwargs" && name == "eps";
            let arguments = tower[key].as_object();
            if let Some(name) = arguments.and_then(|a| a.keys().find(|name| !is_known(name))) {
                return Err(ShapeError::Config(format!(
                    "{key} has {name:?}, which is not supported"
                )));
            }
        }
        let width = positive(tower, "width", 768)?;
        let head_width = positive(tower, "head_width", 64)?;
        if width % head_width != 0 {
            return Err(ShapeError::Config(format!(
                "width {width} must be a multiple of head_width {head_width}"
            )));
        }
        let ratio = or_default(tower, "mlp_ratio", 4.0, Value::as_f64)?;
        let quick_gelu = &self.json["model_cfg"];
        let quick_gelu = or_default(quick_gelu, "quick_gelu", false, Value::as_bool)?;
        Ok(VisionConfig {
            family: VisionFamily::Clip,
            hidden_size: width,
            intermediate_size: (width as f64 * ratio) as i64,
            num_hidden_layers: positive(tower, "layers", 12)?,
            num_attention_heads: width / head_width,
            num_channels: 3,
            image_size: self.image_size()?,
            patch_size: positive(tower, "patch_size", 16)?,
            hidden_act: if quick_gelu { "quick_gelu" } else { "gelu" }.into(),
            layer_norm_eps: or_default(&tower["norm_kwargs"], "eps", 1e-5, Value::as_f64)?,
        })
    }

    /// Side of the images in pixels.
    fn image_size(&self) -> Result<i64, ShapeError> {
        match &self.tower()["image_size"] {
            Value::Array(sides) if sides.len() == 2 && sides[0] == sides[1] => {
                positive(&json!({"image_size": sides[0]}), "image_size", 0)
            }
            Value::Array(sides) => Err(ShapeError::Config(format!(
                "image_size is {}; expected a square",
                json!(sides)
            ))),
            _ => positive(self.tower(), "image_size", 224),
        }
    }
}

/// The whole number `key` of an object, at least 1; `default` if it is left out.
fn positive(json: &Value, key: &str, default: i64) -> Result<i64, ShapeError> {
    or_default(json, key, default, |value| value.as_i64().filter(|number| *number >= 1))
}

/// The value `key` of an object, as `read` gives it; `default` if it is left out.
fn or_default<T>(
    json: &Value,
    key: &str,
    default: T,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<T, ShapeError> {
    match &json[key] {
        Value::Null => Ok(default),
        value => read(value).ok_or_else(|| {
            ShapeError::Config(format!("{key} is {}, which is not valid", shortened(value)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn tower(vision: Value) -> OpenClip {
        let json = json!({"model_cfg": {"embed_dim": 512, "vision_cfg": vision, "text_cfg": {}}});
        OpenClip { path: FILE.into(), json }
    }

    #[test]
    fn a_vit_of_open_clip_is_clips() {
        // ViT-B-16 and ViT-H-14.
        let plain = json!({"image_size": 224, "layers": 12, "width": 768, "patch_size": 16});
        let expected = VisionConfig { hidden_act: "gelu".into(), ..VisionConfig::default() };
        assert_eq!(tower(plain.clone()).vision().unwrap(), expected);
        let mut quick = tower(plain);
        quick.json["model_cfg"]["quick_gelu"] = json!(true);
        assert_eq!(quick.vision().unwrap(), VisionConfig::default());
        let huge = json!({"image_size": [336, 336], "layers": 32, "width": 1280, "head_width": 80,
            "patch_size": 14});
        let huge = tower(huge).vision().unwrap();
        assert_eq!((huge.num_attention_heads, huge.intermediate_size), (16, 5120));
        assert_eq!((huge.image_size, huge.num_hidden_layers), (336, 32));
    }

    #[test]
    fn settings_of_a_tower_that_change_it_are_refused_by_name() {
        for (key, value) in [
            ("layers", json!([3, 4, 6, 3])),
            ("ls_init_value", json!(1e-4)),
            ("no_ln_pre", json!(true)),
            ("pos_embed_type", json!("sin_cos_2d")),
            ("act_kwargs", json!({"approximate": "tanh"})),
            ("block_type", json!("custom")),
            ("qk_norm", json!(true)),
            ("rope_theta", json!(1e4)),
            ("image_size", json!([224, 336])),
            ("width", json!("wide")),
            ("width", json!(0)),
            ("mlp_ratio", json!([4.0])),
        ] {
            let mut vision = json!({});
            vision[key] = value;
            let error = tower(vision).vision().unwrap_err().to_string();
            assert!(error.contains(key) && error.starts_with(FILE), "{error}");
        }
    }
}
