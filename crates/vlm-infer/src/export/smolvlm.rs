//! The SmolVLM container: a SigLIP encoder, whose patch features are joined by squares before one
//! linear layer (pixel shuffle).

use serde_json::{Value, json};
use tch::Tensor;

use super::joined::{Folder, Joined};
use crate::InferError;

/// The files of `SmolVLMForConditionalGeneration`. Version 4 of transformers computes the encoder's
/// positions differently, so version 5 is needed.
///
/// # Errors
/// A tensor cannot be read.
pub(super) fn folder(joined: &Joined) -> Result<Folder, InferError> {
    let mut vision_config = json!(joined.vision);
    vision_config["model_type"] = json!("smolvlm_vision");
    let mut config =
        joined.common_config("smolvlm", "SmolVLMForConditionalGeneration", vision_config);
    config["scale_factor"] = json!(scale_factor(joined));
    let side = joined.vision.image_size;
    let preprocessing = &joined.preprocessing;
    // The class can only resize with the aspect ratio kept, which the model was not trained with.
    let preprocessor = json!({
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": true,
        "do_resize": false,
        "size": {"longest_edge": side},
        "do_image_splitting": false,
        "max_image_size": {"longest_edge": side},
        "resample": preprocessing["resample"],
        "do_rescale": true,
        "rescale_factor": preprocessing["rescale_factor"],
        "do_normalize": true,
        "image_mean": preprocessing["image_mean"],
        "image_std": preprocessing["image_std"],
        "do_pad": true,
    });
    let processor = json!({
        "processor_class": "SmolVLMProcessor",
        "image_seq_len": joined.projector.tokens_per_image,
    });
    Ok(Folder { config, tensors: tensors(joined)?, preprocessor, processor })
}

/// Side of the squares of patches that make one token.
fn scale_factor(joined: &Joined) -> Value {
    let square = joined.vision.num_patches() / joined.projector.tokens_per_image;
    json!((square as f64).sqrt().round() as i64)
}

fn tensors(joined: &Joined) -> Result<Vec<(String, Tensor)>, InferError> {
    let mut tensors = joined.lm_tensors_under("model.text_model", "");
    tensors.extend(joined.encoder_tensors("model.")?);
    let name = "model.connector.modality_projection.proj.weight".to_owned();
    tensors.push((name, joined.projector_tensor("proj.weight")?));
    Ok(tensors)
}
