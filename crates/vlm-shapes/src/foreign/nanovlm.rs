//! nanoVLM's own folder: SigLIP, SmolLM2 and a pixel-shuffle projector, described by settings named
//! `vit_…`, `lm_…` and `mp_…`.

use serde_json::{Value, json};

use super::format::{Parts, TopKeys, integer};
use crate::keys::Neutral;
use crate::{ProjectorConfig, ShapeError, VisionConfig};

pub(super) const KEYS: TopKeys = TopKeys {
    read: &[
        "vit_hidden_dim", "vit_inter_dim", "vit_patch_size", "vit_img_size", "vit_n_heads",
        "vit_n_blocks", "vit_ln_eps", "vit_model_type", "lm_hidden_dim", "lm_inter_dim",
        "lm_rms_eps", "lm_re_base", "lm_max_position_embeddings", "lm_base_vocab_size",
        "extra_token_amount", "lm_vocab_size", "lm_n_heads", "lm_n_kv_heads", "lm_dropout",
        "lm_n_blocks", "lm_max_length", "lm_use_tokens", "lm_tie_weights", "lm_model_type",
        "lm_tokenizer", "lm_chat_template", "lm_eos_token_id", "mp_pixel_shuffle_factor",
        "mp_image_token_length", "max_img_size", "resize_to_max_side_len", "vlm_extra_tokens",
        "vlm_load_backbone_weights", "vlm_checkpoint_path", "hf_repo_name",
    ],
    must_be: &[
        ("vit_cls_flag", &[Neutral::False]),
        ("vit_dropout", &[Neutral::Number(0.0)]),
        ("lm_attn_scaling", &[Neutral::Number(1.0)]),
    ],
    of_tower: &[],
};

/// Whether the keys are those of nanoVLM's `VLMConfig`.
pub(super) fn is_one(json: &Value) -> bool {
    ["vit_hidden_dim", "lm_hidden_dim", "mp_pixel_shuffle_factor"]
        .iter()
        .all(|key| json.get(key).is_some())
}

/// The language model, which is LLaMA's with nanoVLM's names.
pub(super) fn language(json: &Value) -> Result<Value, ShapeError> {
    Ok(json!({
        "model_type": "llama",
        "hidden_size": json["lm_hidden_dim"],
        "intermediate_size": json["lm_inter_dim"],
        "num_hidden_layers": json["lm_n_blocks"],
        "num_attention_heads": json["lm_n_heads"],
        "num_key_value_heads": json["lm_n_kv_heads"],
        "vocab_size": json["lm_vocab_size"],
        "max_position_embeddings": json["lm_max_position_embeddings"],
        "rms_norm_eps": json["lm_rms_eps"],
        "rope_theta": json["lm_re_base"],
        "attention_dropout": json["lm_dropout"],
        "tie_word_embeddings": json["lm_tie_weights"].as_bool().unwrap_or(true),
    }))
}

pub(super) fn parts(json: &Value) -> Result<Parts, ShapeError> {
    let vision = VisionConfig::from_tower_json(&json!({
        "model_type": "siglip_vision_model",
        "hidden_size": json["vit_hidden_dim"],
        "intermediate_size": json["vit_inter_dim"],
        "num_hidden_layers": json["vit_n_blocks"],
        "num_attention_heads": json["vit_n_heads"],
        "image_size": json["vit_img_size"],
        "patch_size": json["vit_patch_size"],
        "layer_norm_eps": json["vit_ln_eps"],
        "hidden_act": "gelu_pytorch_tanh",
    }))?;
    let factor = integer(json, "mp_pixel_shuffle_factor", 2)?;
    let projector = ProjectorConfig::pixel_shuffle(factor, &vision)?;
    let tokens = integer(json, "mp_image_token_length", projector.tokens_per_image)?;
    if tokens != projector.tokens_per_image {
        return Err(ShapeError::Config(format!(
            "mp_image_token_length is {tokens}, but the projector makes {} tokens of an image",
            projector.tokens_per_image
        )));
    }
    Ok(Parts { vision, projector })
}

/// Older models put the features of an image before the whole prompt; later ones split large
/// images into tiles.
pub(super) fn difference(json: &Value) -> Option<String> {
    if json["vlm_extra_tokens"].is_null() {
        return Some(
            "this version of nanoVLM put an image before the whole prompt; here it is where the \
             row or prompt has <image>, for which the model must be trained further"
                .into(),
        );
    }
    json["max_img_size"].is_number().then(|| {
        "nanoVLM splits large images into tiles; only the whole image, as one tile, is used".into()
    })
}

/// nanoVLM writes no tokenizer: it adds tokens to that of a language model whenever it starts.
pub(super) fn tokenizer_advice(json: &Value) -> String {
    let name = json["lm_tokenizer"].as_str().unwrap_or("the language model");
    let extra = match &json["vlm_extra_tokens"] {
        Value::Null => "",
        _ => ", extra_special_tokens=config[\"vlm_extra_tokens\"]",
    };
    format!(
        "nanoVLM's folder has no tokenizer; make one in Python: config = \
         json.load(open(\"config.json\")); AutoTokenizer.from_pretrained({name:?}{extra}, \
         chat_template=config[\"lm_chat_template\"]).save_pretrained(\"tokenizer\")"
    )
}
