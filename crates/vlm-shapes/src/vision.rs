//! The configuration of the vision encoder, read from and written to Hugging Face's `config.json`.
//! `vision_file.rs` reads it from the files of all programs.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ShapeError;
use crate::keys::{self, Neutral, shortened};
use crate::limits::{self, MAX_BLOCKS, MAX_HEADS, MAX_SIDE, MAX_WIDTH};

/// The published format of a vision encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum VisionFamily {
    /// CLIP (Radford et al. 2021): a class token, a norm before the blocks and none after.
    #[default]
    #[serde(rename = "clip_vision_model")]
    Clip,
    /// SigLIP and SigLIP 2 of fixed resolution (Zhai et al. 2023, Tschannen et al. 2025): no class
    /// token, a norm after the blocks.
    #[serde(rename = "siglip_vision_model")]
    Siglip,
}

/// The configuration of a vision transformer, with Hugging Face's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// The published format.
    #[serde(rename = "model_type")]
    pub family: VisionFamily,
    /// Width V of a patch feature.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Number of transformer blocks.
    pub num_hidden_layers: i64,
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Number of colour channels of the input.
    pub num_channels: i64,
    /// Side of the input in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// Activation of the MLP: `quick_gelu`, `gelu` or `gelu_pytorch_tanh`.
    pub hidden_act: String,
    /// Added to the variance in layer normalisation.
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    /// ViT-B/16 at 224 pixels, with OpenAI's activation.
    fn default() -> Self {
        Self {
            family: VisionFamily::Clip,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 16,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl VisionFamily {
    /// The defaults of the family's configuration class in Hugging Face's transformers.
    fn class_defaults(self) -> VisionConfig {
        match self {
            Self::Clip => VisionConfig { patch_size: 32, ..VisionConfig::default() },
            Self::Siglip => VisionConfig::siglip(),
        }
    }
}

impl VisionConfig {
    /// SigLIP ViT-B/16 at 224 pixels.
    pub fn siglip() -> Self {
        Self {
            family: VisionFamily::Siglip,
            hidden_act: "gelu_pytorch_tanh".into(),
            layer_norm_eps: 1e-6,
            ..Self::default()
        }
    }

    /// Reads the content of a Hugging Face `config.json` of a whole CLIP or SigLIP model (with
    /// `vision_config`), or of a vision tower.
    ///
    /// # Errors
    /// The configuration belongs to another model, or its numbers describe no model.
    pub(crate) fn from_tower_json(json: &Value) -> Result<Self, ShapeError> {
        let within = &json["vision_config"];
        let tower = if within.is_object() { within } else { json };
        // Older CLIP files have `model_type` only at the top, not in each tower.
        let model_type = tower["model_type"].as_str().or(json["model_type"].as_str());
        let family = family_of(model_type.unwrap_or("clip"))?;
        let tower = with_old_copy(json, tower)?;
        check_keys(&tower)?;
        let mut filled = json!(family.class_defaults());
        for (key, value) in filled.as_object_mut().into_iter().flatten() {
            if key != "model_type" && !tower[key.as_str()].is_null() {
                *value = tower[key.as_str()].clone();
            }
        }
        let config: Self =
            serde_json::from_value(filled).map_err(|e| ShapeError::Config(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// The `config.json` of a vision tower.
    pub fn to_json(&self) -> Value {
        let class = match self.family {
            VisionFamily::Clip => "CLIPVisionModel",
            VisionFamily::Siglip => "SiglipVisionModel",
        };
        let mut tree = json!(self);
        tree["architectures"] = json!([class]);
        tree
    }

    /// Number of patches along one side. Pixels that are left over at the right and at the bottom
    /// are not used.
    pub fn patches_per_side(&self) -> i64 {
        self.image_size / self.patch_size
    }

    /// Number of patches of one image.
    pub fn num_patches(&self) -> i64 {
        self.patches_per_side() * self.patches_per_side()
    }

    /// Length of the encoder's sequence: the patches, and the class token of a CLIP encoder.
    pub fn num_positions(&self) -> i64 {
        self.num_patches() + i64::from(self.family == VisionFamily::Clip)
    }

    /// This configuration, if its numbers describe a model.
    pub(crate) fn validated(self) -> Result<Self, ShapeError> {
        self.validate()?;
        Ok(self)
    }

    fn validate(&self) -> Result<(), ShapeError> {
        limits::check(&[
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("num_attention_heads", self.num_attention_heads, MAX_HEADS),
            ("image_size", self.image_size, MAX_SIDE),
            ("patch_size", self.patch_size, MAX_SIDE),
            // The projector of a whole model may take the embeddings of the patches.
            ("num_hidden_layers", self.num_hidden_layers.max(1), MAX_BLOCKS),
        ])
        .map_err(|error| ShapeError::Config(format!("vision encoder: {error}")))?;
        if self.hidden_size % self.num_attention_heads != 0 || self.image_size < self.patch_size {
            return Err(ShapeError::Config(format!(
                "vision encoder: hidden_size {} over {} heads must divide evenly, and image_size \
                 {} must hold a patch of {}",
                self.hidden_size, self.num_attention_heads, self.image_size, self.patch_size
            )));
        }
        if self.num_channels != 3 {
            return Err(ShapeError::Config(format!(
                "vision encoder: num_channels is {}; expected 3",
                self.num_channels
            )));
        }
        if !matches!(self.hidden_act.as_str(), "quick_gelu" | "gelu" | "gelu_pytorch_tanh") {
            return Err(ShapeError::Config(format!(
                "vision encoder: hidden_act {:?}; supported: \"quick_gelu\", \"gelu\", \
                 \"gelu_pytorch_tanh\"",
                self.hidden_act
            )));
        }
        Ok(())
    }
}

/// Keys of a tower that are read, and keys that are ignored because they concern the heads for
/// pooled outputs or the word embeddings, which old files mention in every part.
const KEYS: [&str; 13] = [
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps", "projection_dim",
    "logit_scale_init_value", "vision_use_head", "tie_word_embeddings",
];

/// Keys of a tower with the only values that are supported.
const MUST_BE: [(&str, &[Neutral]); 5] = [
    ("attention_bias", &[Neutral::True]),
    ("attention_dropout", &[Neutral::Number(0.0)]),
    ("dropout", &[Neutral::Number(0.0)]),
    ("qkv_bias", &[Neutral::True]),
    // Attention of a vision tower is not causal.
    ("is_causal", &[Neutral::False]),
];

/// Checks the keys of a tower's configuration, or of a whole model's that has no `vision_config`.
pub(crate) fn check_keys(tower: &Value) -> Result<Vec<String>, ShapeError> {
    let read = [&KEYS[..], &["text_config", "text_config_dict", "vision_config"]].concat();
    tower.as_object().map_or(Ok(Vec::new()), |tower| keys::check(tower, &read, &MUST_BE))
}

fn family_of(model_type: &str) -> Result<VisionFamily, ShapeError> {
    match model_type {
        "clip" | "clip_vision_model" => Ok(VisionFamily::Clip),
        "siglip" | "siglip_vision_model" => Ok(VisionFamily::Siglip),
        "siglip2" | "siglip2_vision_model" => Err(ShapeError::Config(format!(
            "model_type is {model_type:?}, an encoder of variable resolution (NaFlex), which is \
             not supported; use one of fixed resolution, whose model_type is \"siglip\""
        ))),
        other => Err(ShapeError::Config(format!(
            "model_type is {other:?}; expected \"clip\", \"siglip\", or a vision tower's own \
             \"clip_vision_model\" or \"siglip_vision_model\""
        ))),
    }
}

/// The `vision_config` of a whole CLIP model, with the values of `vision_config_dict`, an older
/// copy of it that takes precedence in transformers.
fn with_old_copy(json: &Value, tower: &Value) -> Result<Value, ShapeError> {
    let mut tower = tower.clone();
    for (key, value) in json["vision_config_dict"].as_object().into_iter().flatten() {
        let is_read = KEYS.contains(&key.as_str());
        if is_read && !tower[key.as_str()].is_null() && tower[key.as_str()] != *value {
            return Err(ShapeError::Config(format!(
                "{key} is {} in vision_config and {} in vision_config_dict; remove the wrong one \
                 from config.json",
                shortened(&tower[key.as_str()]),
                shortened(value)
            )));
        }
        tower[key.as_str()] = value.clone();
    }
    Ok(tower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_settings_of_a_tower_are_refused_by_name() {
        let refusal = |key: &str, value: Value| {
            let mut tower = json!({"model_type": "siglip_vision_model"});
            tower[key] = value;
            VisionConfig::from_tower_json(&tower).unwrap_err().to_string()
        };
        assert!(refusal("hidden_act", json!("relu")).contains("hidden_act \"relu\""));
        for (key, value) in [
            ("attention_dropout", json!(0.1)),
            ("qkv_bias", json!(false)),
            ("use_rope", json!(false)),
            ("num_registers_in_layers", json!(4)),
            ("rope_theta", json!(1e4)),
        ] {
            let error = refusal(key, value);
            assert!(error.starts_with(&format!("{key} is ")), "{error}");
        }
        let with_head = json!({"model_type": "siglip_vision_model", "vision_use_head": true});
        assert_eq!(VisionConfig::from_tower_json(&with_head).unwrap(), VisionConfig::siglip());
    }

    #[test]
    fn numbers_beyond_the_limits_are_refused_by_name() {
        for (key, limit) in [
            ("image_size", MAX_SIDE),
            ("patch_size", MAX_SIDE),
            ("hidden_size", MAX_WIDTH),
            ("intermediate_size", MAX_WIDTH),
            ("num_attention_heads", MAX_HEADS),
            ("num_hidden_layers", MAX_BLOCKS),
        ] {
            let mut tower = json!({"model_type": "clip_vision_model"});
            tower[key] = json!(limit + 1);
            let error = VisionConfig::from_json(&tower).unwrap_err().to_string();
            let expected = format!("{key} is {}; the limit is {limit}", limit + 1);
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn keys_that_old_files_write_into_every_tower_are_ignored() {
        // The keys of PretrainedConfig that transformers 4.1x wrote into each part.
        let tower = r#"{"model_type": "clip_vision_model", "patch_size": 16, "_name_or_path": "",
            "add_cross_attention": false, "architectures": null, "attention_dropout": 0.0,
            "bad_words_ids": null, "bos_token_id": null, "chunk_size_feed_forward": 0,
            "cross_attention_hidden_size": null, "decoder_start_token_id": null,
            "diversity_penalty": 0.0, "do_sample": false, "dropout": 0.0, "early_stopping":
            false, "encoder_no_repeat_ngram_size": 0, "eos_token_id": null, "finetuning_task":
            null, "forced_bos_token_id": null, "id2label": {"0": "LABEL_0"},
            "initializer_factor": 1.0, "initializer_range": 0.02, "is_decoder": false,
            "is_encoder_decoder": false, "label2id": {"LABEL_0": 0}, "length_penalty": 1.0,
            "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
            "num_beams": 1, "num_return_sequences": 1, "output_attentions": false,
            "output_hidden_states": false, "output_scores": false, "pad_token_id": null,
            "prefix": null, "problem_type": null, "projection_dim": 512, "pruned_heads": {},
            "remove_invalid_values": false, "repetition_penalty": 1.0, "return_dict": true,
            "return_dict_in_generate": false, "sep_token_id": null, "task_specific_params":
            null, "temperature": 1.0, "tie_encoder_decoder": false, "tie_word_embeddings": true,
            "tokenizer_class": null, "top_k": 50, "top_p": 1.0, "torch_dtype": null,
            "torchscript": false, "transformers_version": "4.16.0.dev0", "typical_p": 1.0,
            "use_bfloat16": false}"#;
        let tower: Value = serde_json::from_str(tower).unwrap();
        let whole = json!({"model_type": "clip", "vision_config": tower});
        assert_eq!(VisionConfig::from_tower_json(&whole).unwrap(), VisionConfig::default());
    }

    #[test]
    fn the_older_copy_of_a_towers_configuration_is_read_too() {
        let whole = |copy: Value| {
            VisionConfig::from_tower_json(&json!({
                "model_type": "clip",
                "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024},
                "vision_config_dict": copy,
            }))
        };
        let config = whole(json!({"hidden_size": 1024, "num_attention_heads": 16})).unwrap();
        assert_eq!((config.hidden_size, config.num_attention_heads), (1024, 16));
        let error = whole(json!({"hidden_size": 768})).unwrap_err().to_string();
        assert!(error.contains("1024 in vision_config and 768"), "{error}");
    }

    #[test]
    fn towers_are_recognised_by_model_type() {
        // The configuration of the vision tower of google/siglip-base-patch16-224.
        let whole =
            json!({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}});
        assert_eq!(VisionConfig::from_tower_json(&whole).unwrap(), VisionConfig::siglip());
        let tower = json!({"model_type": "clip_vision_model", "patch_size": 16});
        assert_eq!(VisionConfig::from_tower_json(&tower).unwrap(), VisionConfig::default());
        for config in [VisionConfig::default(), VisionConfig::siglip()] {
            assert_eq!(VisionConfig::from_tower_json(&config.to_json()).unwrap(), config);
        }
        let naflex = json!({"model_type": "siglip2"});
        let error = VisionConfig::from_tower_json(&naflex).unwrap_err().to_string();
        assert!(error.contains("variable resolution"), "{error}");
        let other =
            VisionConfig::from_tower_json(&json!({"model_type": "vit"})).unwrap_err().to_string();
        assert!(other.contains("\"vit\"; expected"), "{other}");
    }

    #[test]
    fn pixels_beyond_the_last_whole_patch_are_not_used() {
        let config = VisionConfig { image_size: 384, patch_size: 14, ..VisionConfig::siglip() };
        assert_eq!(config.num_patches(), 27 * 27);
    }
}
