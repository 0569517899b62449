//! Idefics3 and SmolVLM: SigLIP's patch features, of which squares are merged (pixel shuffle), and
//! one linear layer. An image is one tile; tiles of larger images are not supported.

use serde_json::{Value, json};

use super::format::{Parts, TopKeys, integer};
use super::tower;
use crate::keys::Neutral;
use crate::{ProjectorConfig, ShapeError};

pub(super) const KEYS: TopKeys = TopKeys {
    read: &["scale_factor", "use_reentrant_checkpointing"],
    must_be: &[("use_resampler", &[Neutral::False])],
    // They concern the image processor and the code of the training.
    of_tower: &["max_image_size", "size", "use_base_siglip"],
};

/// Default of `scale_factor`.
const SCALE_FACTOR: i64 = 2;

pub(super) fn parts(json: &Value) -> Result<Parts, ShapeError> {
    let defaults = json!({
        "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 32,
    });
    let types = ["idefics3_vision", "smolvlm_vision", "idefics3", "smolvlm"];
    let vision = tower::read(json, &types, "siglip_vision_model", &defaults, KEYS.of_tower)?;
    let scale_factor = integer(json, "scale_factor", SCALE_FACTOR)?;
    let projector = ProjectorConfig::pixel_shuffle(scale_factor, &vision)?;
    Ok(Parts { vision, projector })
}
