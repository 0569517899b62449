//! The LLaVA container: a CLIP encoder, whose patch features go through one linear layer, or through
//! two with a GELU between them.

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use vlm_model::ProjectorKind;

use super::joined::{Folder, Joined, identity_layer};
use super::language_model::Tensors;
use crate::InferError;

/// The files of `LlavaForConditionalGeneration`. Its projector has two layers with an activation
/// between them. For a linear projector the activation is `linear` and the second layer is the
/// identity.
///
/// # Errors
/// A tensor cannot be read.
pub(super) fn folder(joined: &Joined) -> Result<Folder, InferError> {
    let vision = joined.vision;
    let mut vision_config = vision.to_json();
    if let Some(tree) = vision_config.as_object_mut() {
        tree.remove("architectures");
    }
    vision_config["projection_dim"] = joined.text_config["hidden_size"].clone();
    let mut config = joined.common_config("llava", "LlavaForConditionalGeneration", vision_config);
    config["image_seq_length"] = json!(vision.num_patches());
    // The output of the last block, without the norm of the pooled output; `default` leaves out
    // the class token.
    config["vision_feature_layer"] = json!(-1);
    config["vision_feature_select_strategy"] = json!("default");
    config["projector_hidden_act"] = json!(if has_gelu(joined) { "gelu" } else { "linear" });
    config["multimodal_projector_bias"] = json!(true);
    let mut preprocessor = joined.preprocessing.clone();
    preprocessor["processor_class"] = json!("LlavaProcessor");
    Ok(Folder { config, tensors: tensors(joined)?, preprocessor, processor: processor(joined) })
}

fn tensors(joined: &Joined) -> Result<Tensors, InferError> {
    let mut tensors = joined.lm_tensors_under("language_model.model", "language_model.");
    tensors.extend(joined.encoder_tensors("vision_tower.")?);
    // The class has the norm, but its result is not used.
    let width = [joined.vision.hidden_size];
    let norm = "vision_tower.vision_model.post_layernorm";
    let options = (Kind::Float, Device::Cpu);
    tensors.push((format!("{norm}.weight"), Tensor::ones(width, options)));
    tensors.push((format!("{norm}.bias"), Tensor::zeros(width, options)));
    tensors.extend(projector_tensors(joined)?);
    Ok(tensors)
}

/// Whether the projector has a GELU between two layers.
fn has_gelu(joined: &Joined) -> bool {
    joined.projector.kind == ProjectorKind::Mlp2xGelu
}

fn projector_tensors(joined: &Joined) -> Result<Tensors, InferError> {
    let named = |name: &str, tensor| (format!("multi_modal_projector.{name}"), tensor);
    if has_gelu(joined) {
        let names = ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"];
        return names.iter().map(|name| Ok(named(name, joined.projector_tensor(name)?))).collect();
    }
    let weight = joined.projector_tensor("vision_proj.0.weight")?;
    let bias = joined.projector_tensor("vision_proj.0.bias")?;
    let (identity, zeros) = identity_layer(weight.size()[0], weight.kind());
    Ok(vec![
        named("linear_1.weight", weight),
        named("linear_1.bias", bias),
        named("linear_2.weight", identity),
        named("linear_2.bias", zeros),
    ])
}

fn processor(joined: &Joined) -> Value {
    json!({
        "processor_class": "LlavaProcessor",
        "image_token": joined.image_token,
        "patch_size": joined.vision.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    })
}
