//! LLaVA and LLaVA-1.5: CLIP's patch features from one of its last blocks, and two linear layers
//! for each patch with an activation between them.

use serde_json::{Value, json};

use super::format::{Parts, TopKeys, integer};
use super::tower;
use crate::keys::{Neutral, shortened, unsupported};
use crate::{ProjectorConfig, ProjectorKind, ShapeError, VisionConfig, VisionFamily};

pub(super) const KEYS: TopKeys = TopKeys {
    read: &["vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act"],
    must_be: &[("multimodal_projector_bias", &[Neutral::True])],
    // The vocabulary of a text tower.
    of_tower: &["vocab_size"],
};

/// LLaVA's default of `vision_feature_layer`: the output of the last block but one.
const FEATURE_LAYER: i64 = -2;

/// The encoder up to the block whose output the projector takes. A SigLIP encoder is read as a
/// whole, for use without LLaVA's projector.
pub(super) fn vision(json: &Value) -> Result<VisionConfig, ShapeError> {
    let model_type = json["vision_config"]["model_type"].as_str().unwrap_or_default();
    if model_type.starts_with("siglip") {
        return tower::read(json, &[model_type], model_type, &Value::Null, KEYS.of_tower);
    }
    let defaults = json!({
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    });
    let mut config =
        tower::read(json, &["clip_vision_model"], "clip_vision_model", &defaults, KEYS.of_tower)?;
    let blocks = config.num_hidden_layers;
    let layer = match &json["vision_feature_layer"] {
        Value::Array(_) => {
            return Err(ShapeError::Config(format!(
                "vision_feature_layer is {}; features of several blocks are not supported",
                shortened(&json["vision_feature_layer"])
            )));
        }
        _ => integer(json, "vision_feature_layer", FEATURE_LAYER)?,
    };
    // Index 0 is the input of the first block, and -1 the output of the last one.
    let used = if layer < 0 { blocks + 1 + layer } else { layer };
    if !(0..=blocks).contains(&used) {
        return Err(ShapeError::Config(format!(
            "vision_feature_layer is {layer}, but the vision encoder has {blocks} blocks"
        )));
    }
    config.num_hidden_layers = used;
    Ok(config)
}

pub(super) fn parts(json: &Value) -> Result<Parts, ShapeError> {
    let vision = vision(json)?;
    if vision.family == VisionFamily::Siglip {
        return Err(ShapeError::Config(
            "the vision encoder of this LLaVA model is SigLIP, for which transformers 4 and 5 \
             compute different features; only CLIP is supported"
                .into(),
        ));
    }
    let strategy = &json["vision_feature_select_strategy"];
    if !strategy.is_null() && strategy != "default" {
        let supported = [Neutral::Text("default")];
        return Err(unsupported("vision_feature_select_strategy", strategy, &supported));
    }
    let act = json["projector_hidden_act"].as_str().unwrap_or("gelu");
    let kind = match act {
        "gelu" => ProjectorKind::Mlp2xGelu,
        // Two linear layers are one; `vlm-model` checks that the second one changes nothing.
        "linear" => ProjectorKind::Linear,
        _ => {
            let supported = [Neutral::Text("gelu"), Neutral::Text("linear")];
            return Err(unsupported("projector_hidden_act", &json!(act), &supported));
        }
    };
    let projector = ProjectorConfig::new(kind, &vision)?;
    Ok(Parts { vision, projector })
}
