//! Vision towers in folders of open_clip: `open_clip_config.json` in terms of this crate's own
//! configuration, and the preprocessing in it as `preprocessor_config.json`.
//!
//! `model_cfg.vision_cfg` describes a vision transformer of open_clip's own, which is CLIP's, or
//! names one of timm, of which only SigLIP's are supported. The names of the tensors are not here,
//! but in `vlm-model`.

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

/// A vision transformer of timm 1.0.
struct TimmTower {
    /// Its name, or the start of the names of towers that differ in the image size alone.
    name: &'static str,
    patch_size: i64,
    width: i64,
    layers: i64,
    heads: i64,
    intermediate: i64,
    hidden_act: &'static str,
}

/// The towers of SigLIP in timm. Most of them have the exact GELU, which Hugging Face approximates.
/// The first entry that fits a name holds.
const TIMM_TOWERS: [TimmTower; 7] = [
    timm("vit_base_patch32_siglip_256", 32, [768, 12, 12, 3072], "gelu_pytorch_tanh"),
    timm("vit_base_patch16_siglip_", 16, [768, 12, 12, 3072], "gelu"),
    timm("vit_large_patch16_siglip_512", 16, [1024, 24, 16, 4096], "gelu_pytorch_tanh"),
    timm("vit_large_patch16_siglip_", 16, [1024, 24, 16, 4096], "gelu"),
    timm("vit_so400m_patch14_siglip_", 14, [1152, 27, 16, 4304], "gelu"),
    timm("vit_so400m_patch16_siglip_", 16, [1152, 27, 16, 4304], "gelu_pytorch_tanh"),
    timm("vit_giantopt_patch16_siglip_", 16, [1536, 40, 16, 6144], "gelu_pytorch_tanh"),
];

/// A tower with `[width, layers, heads, width of the MLP]`.
const fn timm(
    name: &'static str,
    patch_size: i64,
    [width, layers, heads, intermediate]: [i64; 4],
    hidden_act: &'static str,
) -> TimmTower {
    TimmTower { name, patch_size, width, layers, heads, intermediate, hidden_act }
}

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
        let ratio = tower["mlp_ratio"].as_f64().unwrap_or(4.0);
        let quick_gelu = self.json["model_cfg"]["quick_gelu"].as_bool().unwrap_or(false);
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
            layer_norm_eps: tower["norm_kwargs"]["eps"].as_f64().unwrap_or(1e-5),
        })
    }

    /// A vision transformer of timm: SigLIP's.
    fn timm_tower(&self) -> Result<VisionConfig, ShapeError> {
        let tower = self.tower();
        let found = tower["timm_model_name"].as_str().unwrap_or_default();
        // Behind a dot is the name of a set of weights.
        let name = found.split('.').next().unwrap_or_default();
        let is_number = |rest: &str| rest.bytes().all(|b| b.is_ascii_digit());
        let fits = |tower: &&TimmTower| name.strip_prefix(tower.name).is_some_and(is_number);
        let Some(known) = TIMM_TOWERS.iter().find(fits) else {
            return Err(ShapeError::Config(format!(
                "timm_model_name is {found:?}; of timm's towers only those of SigLIP of fixed \
                 resolution (vit_…_siglip_…) are supported; use the model in Hugging Face's \
                 format, if there is one"
            )));
        };
        if tower["timm_pool"] != "map" {
            return Err(ShapeError::Config(format!(
                "timm_pool is {}, with which {found} has no norm after its blocks; expected \"map\"",
                shortened(&tower["timm_pool"])
            )));
        }
        Ok(VisionConfig {
            hidden_size: known.width,
            intermediate_size: known.intermediate,
            num_hidden_layers: known.layers,
            num_attention_heads: known.heads,
            image_size: self.image_size()?,
            patch_size: known.patch_size,
            hidden_act: known.hidden_act.into(),
            ..VisionConfig::siglip()
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
                // The defaults of open_clip, which CLIP's class has, too.
                "image_mean": given["mean"],
                "image_std": given["std"],
            }),
            "squash" => json!({
                "image_processor_type": "SiglipImageProcessor",
                "size": square,
                "image_mean": given["mean"],
                "image_std": given["std"],
            }),
            other => {
                return Err(ShapeError::Config(format!(
                    "preprocess_cfg: resize_mode is {other:?}, which pads images and is not \
                     supported; expected \"shortest\" or \"squash\""
                )));
            }
        };
        for (key, default) in [
            ("image_mean", [0.48145466, 0.4578275, 0.40821073]),
            ("image_std", [0.26862954, 0.26130258, 0.27577711]),
        ] {
            if settings[key].is_null() {
                settings[key] = json!(default);
            }
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

/// The whole number `key` of an object, at least 1; `default` if it is left out.
fn positive(json: &Value, key: &str, default: i64) -> Result<i64, ShapeError> {
    match &json[key] {
        Value::Null => Ok(default),
        value => value.as_i64().filter(|number| *number >= 1).ok_or_else(|| {
            ShapeError::Config(format!(
                "{key} is {}; expected a whole number, at least 1",
                shortened(value)
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tower(vision: Value) -> OpenClip {
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
    fn siglip_of_timm_is_recognised_by_its_name() {
        let named = |name: &str, pool: &str| {
            let vision = json!({"image_size": 384, "timm_model_name": name, "timm_pool": pool,
                "timm_proj": "none", "timm_model_pretrained": false});
            tower(vision).vision().map_err(|error| error.to_string())
        };
        let large = named("vit_so400m_patch14_siglip_384", "map").unwrap();
        assert_eq!((large.family, large.hidden_size), (VisionFamily::Siglip, 1152));
        assert_eq!((large.intermediate_size, large.num_patches()), (4304, 27 * 27));
        assert_eq!(large.hidden_act, "gelu");
        let approximated = named("vit_large_patch16_siglip_512.v2_webli", "map").unwrap();
        assert_eq!(approximated.hidden_act, "gelu_pytorch_tanh");
        for (name, pool, expected) in [
            ("vit_base_patch16_siglip_gap_224", "map", "only those of SigLIP"),
            ("convnext_base", "", "timm_model_name is \"convnext_base\""),
            ("vit_base_patch16_siglip_224", "avg", "timm_pool is \"avg\""),
        ] {
            let error = named(name, pool).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
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
        ] {
            let mut vision = json!({});
            vision[key] = value;
            let error = tower(vision).vision().unwrap_err().to_string();
            assert!(error.contains(key) && error.starts_with(FILE), "{error}");
        }
    }

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
