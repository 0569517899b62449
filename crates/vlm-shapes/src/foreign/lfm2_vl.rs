//! LFM2-VL without merging of patches, and with a language model of this program: the form in which
//! a model with a SigLIP encoder and a linear or mlp projector is exported. LFM2's own language model, which has
//! convolutions, is not supported.

use serde_json::{Value, json};

use super::format::{Parts, TopKeys, integer};
use super::tower;
use crate::keys::{Neutral, unsupported};
use crate::{ProjectorConfig, ProjectorKind, ShapeError};

pub(super) const KEYS: TopKeys = TopKeys {
    read: &[
        "downsample_factor", "projector_hidden_size", "encoder_patch_size", "tile_size",
        "min_image_tokens", "max_image_tokens", "max_num_patches", "min_tiles", "max_tiles",
        "use_thumbnail", "tie_embedding", "do_image_splitting", "max_pixels_tolerance",
        "projector_hidden_act", "projector_use_layernorm",
    ],
    must_be: &[
        ("projector_bias", &[Neutral::True]),
        ("vision_feature_layer", &[Neutral::Number(-1.0)]),
        ("use_image_special_tokens", &[Neutral::False]),
    ],
    of_tower: &["num_patches"],
};

/// Default of `downsample_factor`.
const DOWNSAMPLE_FACTOR: i64 = 2;
/// Default of `projector_hidden_size`.
const PROJECTOR_WIDTH: i64 = 2560;
/// Defaults of the encoder's `num_patches` and `patch_size`.
const NUM_PATCHES: i64 = 256;
const PATCH_SIZE: i64 = 16;

pub(super) fn parts(json: &Value) -> Result<Parts, ShapeError> {
    let text = super::text::language(json, super::format::ForeignFormat::Lfm2Vl)?;
    let factor = integer(json, "downsample_factor", DOWNSAMPLE_FACTOR)?;
    if factor != 1 {
        let supported = [Neutral::Number(1.0)];
        return Err(unsupported("downsample_factor", &json!(factor), &supported));
    }
    let width = integer(json, "projector_hidden_size", PROJECTOR_WIDTH)?;
    if text["hidden_size"] != width {
        return Err(ShapeError::Config(format!(
            "projector_hidden_size is {width}; expected the hidden size of the language model, {}",
            text["hidden_size"]
        )));
    }
    let tower = &json["vision_config"];
    let num_patches = integer(tower, "num_patches", NUM_PATCHES)?;
    let side = (num_patches as f64).sqrt().round() as i64;
    if side.checked_mul(side) != Some(num_patches) {
        return Err(ShapeError::Config(format!(
            "num_patches of vision_config is {num_patches}; expected a square number"
        )));
    }
    let patch_size = integer(tower, "patch_size", PATCH_SIZE)?;
    let mut whole = json.clone();
    if !whole["vision_config"].is_object() {
        whole["vision_config"] = json!({});
    }
    whole["vision_config"]["image_size"] = json!(side.saturating_mul(patch_size));
    let types = ["siglip2_vision_model"];
    let defaults = json!({"layer_norm_eps": 1e-6});
    let vision = tower::read(&whole, &types, "siglip_vision_model", &defaults, KEYS.of_tower)?;
    let projector = ProjectorConfig::new(projector_kind(json)?, &vision)?;
    Ok(Parts { vision, projector })
}

/// Norm, linear, GELU, linear; or one linear layer, after which another one changes nothing, which
/// `vlm-model` checks.
fn projector_kind(json: &Value) -> Result<ProjectorKind, ShapeError> {
    let act = json["projector_hidden_act"].as_str().unwrap_or("gelu");
    let has_norm = json["projector_use_layernorm"].as_bool().unwrap_or(true);
    match (act, has_norm) {
        ("gelu", true) => Ok(ProjectorKind::Mlp),
        ("linear", false) => Ok(ProjectorKind::Linear),
        _ => Err(ShapeError::Config(format!(
            "projector_hidden_act is {act:?} and projector_use_layernorm {has_norm}; expected \
             \"gelu\" and true, or \"linear\" and false"
        ))),
    }
}
