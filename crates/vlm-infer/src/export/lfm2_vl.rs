//! The LFM2-VL container: a SigLIP encoder, whose patch features go through one or two linear
//! layers.

use serde_json::{Value, json};
use tch::Tensor;
use vlm_model::ProjectorKind;

use super::joined::{Folder, Joined, identity_layer};
use super::language_model::failed;
use crate::InferError;

/// The files of `Lfm2VlForConditionalGeneration`. A linear projector is its first layer, without
/// norm and activation and with the identity as second layer, which needs transformers 5.
///
/// # Errors
/// A tensor cannot be read.
pub(super) fn folder(joined: &Joined) -> Result<Folder, InferError> {
    let (vision, patches) = (joined.vision, joined.vision.num_patches());
    let is_mlp = joined.projector.kind == ProjectorKind::Mlp;
    let mut vision_config = json!(vision);
    if let Some(tree) = vision_config.as_object_mut() {
        tree.remove("image_size");
    }
    vision_config["model_type"] = json!("siglip2_vision_model");
    vision_config["num_patches"] = json!(patches);
    vision_config["vision_use_head"] = json!(false);
    let mut config =
        joined.common_config("lfm2_vl", "Lfm2VlForConditionalGeneration", vision_config);
    let settings = json!({
        "downsample_factor": 1,
        "projector_hidden_size": joined.text_config["hidden_size"],
        "projector_hidden_act": if is_mlp { "gelu" } else { "linear" },
        "projector_bias": true,
        "projector_use_layernorm": is_mlp,
        "vision_feature_layer": -1,
        "max_num_patches": patches,
    });
    let processing = json!({
        "encoder_patch_size": vision.patch_size,
        "tile_size": vision.image_size,
        "min_image_tokens": patches,
        "max_image_tokens": patches,
        "do_image_splitting": false,
        "min_tiles": 1,
        "max_tiles": 1,
        // Without a thumbnail the processor writes no image token for a single tile.
        "use_thumbnail": true,
        "use_image_special_tokens": false,
    });
    merge(&mut config, &settings);
    merge(&mut config, &processing);
    let mut preprocessor = joined.preprocessing.clone();
    merge(&mut preprocessor, &processing);
    merge(
        &mut preprocessor,
        &json!({
            "image_processor_type": "Lfm2VlImageProcessorFast",
            "processor_class": "Lfm2VlProcessor",
            "do_resize": true,
            "size": {"height": vision.image_size, "width": vision.image_size},
            "downsample_factor": 1,
            "max_pixels_tolerance": 2.0,
            "do_pad": true,
            "return_row_col_info": true,
        }),
    );
    let processor =
        json!({"processor_class": "Lfm2VlProcessor", "use_image_special_tokens": false});
    Ok(Folder { config, tensors: tensors(joined, is_mlp)?, preprocessor, processor })
}

fn merge(tree: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        tree[key.as_str()] = value.clone();
    }
}

fn tensors(joined: &Joined, is_mlp: bool) -> Result<Vec<(String, Tensor)>, InferError> {
    let mut tensors = joined.lm_tensors_under("model.language_model", "");
    for (name, tensor) in joined.encoder_tensors("model.vision_tower.")? {
        let tensor = match name.ends_with("patch_embedding.weight") {
            true => patch_layer(&name, &tensor)?,
            false => tensor,
        };
        tensors.push((name, tensor));
    }
    let mut add = |name: &str, tensor: Tensor| {
        tensors.push((format!("model.multi_modal_projector.{name}"), tensor));
    };
    if is_mlp {
        for (from, to) in [("mlp.0", "layer_norm"), ("mlp.1", "linear_1"), ("mlp.3", "linear_2")] {
            for kind in ["weight", "bias"] {
                add(&format!("{to}.{kind}"), joined.projector_tensor(&format!("{from}.{kind}"))?);
            }
        }
    } else {
        let weight = joined.projector_tensor("vision_proj.0.weight")?;
        let (identity, zeros) = identity_layer(weight.size()[0], weight.kind());
        add("linear_1.weight", weight);
        add("linear_1.bias", joined.projector_tensor("vision_proj.0.bias")?);
        add("linear_2.weight", identity);
        add("linear_2.bias", zeros);
    }
    Ok(tensors)
}

/// The convolution over patches as a linear layer over the pixels of a patch: `[V, 3, p, p]` →
/// `[V, p · p · 3]`.
fn patch_layer(name: &str, kernel: &Tensor) -> Result<Tensor, InferError> {
    let width = kernel.size()[0];
    kernel
        .f_permute([0, 2, 3, 1])
        .and_then(|pixels| pixels.f_reshape([width, -1]))
        .map_err(failed(name))
}
