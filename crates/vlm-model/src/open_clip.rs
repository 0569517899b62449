//! The names of the tensors of vision towers in folders of open_clip, and how they are read under
//! Hugging Face's names of CLIP and SigLIP. The configuration is in `vlm-shapes`.

use vlm_shapes::OpenClip;

use crate::containers::{Part, encoder_tensors};
use crate::weights::{Weights, WeightsError};

/// A vision transformer of open_clip's own: CLIP's.
const OWN: Part = Part {
    prefixes: &[("visual.", "vision_model.")],
    components: &[
        ("class_embedding", "embeddings.class_embedding"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("conv1", "embeddings.patch_embedding"),
        ("ln_pre", "pre_layrnorm"),
        ("ln_post", "post_layernorm"),
        ("transformer.resblocks", "encoder.layers"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("attn.in_proj_weight", "self_attn.qkv_proj.weight"),
        ("attn.in_proj_bias", "self_attn.qkv_proj.bias"),
        ("attn", "self_attn"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ],
};

/// A vision transformer of timm: SigLIP's.
const TIMM: Part = Part {
    prefixes: &[("visual.trunk.", "vision_model.")],
    components: &[
        ("pos_embed", "embeddings.position_embedding.weight"),
        ("patch_embed.proj", "embeddings.patch_embedding"),
        ("blocks", "encoder.layers"),
        ("norm1", "layer_norm1"),
        ("norm2", "layer_norm2"),
        ("attn.qkv", "self_attn.qkv_proj"),
        ("attn.proj", "self_attn.out_proj"),
        // The pooling of Hugging Face's SigLIP, which is not used.
        ("attn_pool", "head"),
        ("norm", "post_layernorm"),
    ],
};

/// The head for the pooled output of open_clip's own towers, which is not used: its layers.
const POOLED: [&str; 2] = ["visual.proj", "visual.attn_pool."];

/// The vision tower of `model` under Hugging Face's names, without the text tower and the heads for
/// pooled outputs.
///
/// # Errors
/// Two tensors would get the same name, or a tensor does not have the shape that its parts need.
pub(crate) fn vision_encoder(weights: Weights, model: &OpenClip) -> Result<Weights, WeightsError> {
    let part = if model.is_timm() { &TIMM } else { &OWN };
    weights.derived(|info| {
        if POOLED.iter().any(|head| info.name.starts_with(head)) {
            return Vec::new();
        }
        part.rename(&info.name).map_or(Vec::new(), |name| encoder_tensors(name, info))
    })
}
