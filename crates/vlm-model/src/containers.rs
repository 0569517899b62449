//! The names of the tensors in whole vision-language models of other programs, one table for each
//! [`ForeignFormat`], and how they are read under this crate's own names.
//!
//! What a container describes is in `vlm-shapes`; nothing here depends on the arithmetic.

use tch::Tensor;

use vlm_shapes::{ForeignFormat, ForeignModel, LmFamily, LmNames, ProjectorKind, ShapeError};

use crate::vision;
use crate::weights::{TensorInfo, Transform, Weights, WeightsError};

/// The names of a part: each prefix with the one that replaces it, and components of the rest of
/// the name with those that replace them, one after another.
pub(crate) struct Part {
    pub(crate) prefixes: &'static [(&'static str, &'static str)],
    pub(crate) components: &'static [(&'static str, &'static str)],
}

/// The names of a container's parts.
struct Layout {
    language: Part,
    vision: Part,
    /// For each kind of projector the names of its layers, without `model.` at the beginning, and
    /// their names in this crate.
    projectors: &'static [(ProjectorKind, &'static [(&'static str, &'static str)])],
}

const LLAVA: Layout = Layout {
    language: Part {
        prefixes: &[
            ("language_model.model.", "model."),
            ("language_model.lm_head.", "lm_head."),
            ("model.language_model.", "model."),
            ("lm_head.", "lm_head."),
        ],
        components: &[],
    },
    vision: Part {
        prefixes: &[
            ("vision_tower.vision_model.", "vision_model."),
            ("model.vision_tower.vision_model.", "vision_model."),
            ("vision_tower.", "vision_model."),
            ("model.vision_tower.", "vision_model."),
        ],
        components: &[],
    },
    projectors: &[
        (
            ProjectorKind::Mlp2xGelu,
            &[
                ("multi_modal_projector.linear_1", "vision_proj.linear_1"),
                ("multi_modal_projector.linear_2", "vision_proj.linear_2"),
            ],
        ),
        (ProjectorKind::Linear, &[("multi_modal_projector.linear_1", "vision_proj.vision_proj.0")]),
    ],
};

const IDEFICS3: Layout = Layout {
    language: Part {
        prefixes: &[("model.text_model.", "model."), ("lm_head.", "lm_head.")],
        components: &[],
    },
    vision: Part { prefixes: &[("model.vision_model.", "vision_model.")], components: &[] },
    projectors: &[(
        ProjectorKind::PixelShuffle,
        &[("connector.modality_projection.proj", "vision_proj.proj")],
    )],
};

const LFM2_VL: Layout = Layout {
    language: Part {
        prefixes: &[("model.language_model.", "model."), ("lm_head.", "lm_head.")],
        components: &[],
    },
    vision: Part {
        prefixes: &[
            ("model.vision_tower.vision_model.", "vision_model."),
            ("model.vision_tower.", "vision_model."),
        ],
        components: &[],
    },
    projectors: &[
        (
            ProjectorKind::Mlp,
            &[
                ("multi_modal_projector.layer_norm", "vision_proj.mlp.0"),
                ("multi_modal_projector.linear_1", "vision_proj.mlp.1"),
                ("multi_modal_projector.linear_2", "vision_proj.mlp.3"),
            ],
        ),
        (ProjectorKind::Linear, &[("multi_modal_projector.linear_1", "vision_proj.vision_proj.0")]),
    ],
};

const NANOVLM: Layout = Layout {
    language: Part {
        prefixes: &[("decoder.head.", "lm_head."), ("decoder.", "model.")],
        components: &[
            ("token_embedding", "embed_tokens"),
            ("blocks", "layers"),
            ("norm1", "input_layernorm"),
            ("norm2", "post_attention_layernorm"),
            ("attn", "self_attn"),
            ("out_proj", "o_proj"),
        ],
    },
    vision: Part {
        prefixes: &[("vision_encoder.", "vision_model.")],
        components: &[
            ("layer_norm", "post_layernorm"),
            ("patch_embedding.conv", "embeddings.patch_embedding"),
            ("patch_embedding.position_embedding", "embeddings.position_embedding.weight"),
            ("blocks", "encoder.layers"),
            ("ln1", "layer_norm1"),
            ("ln2", "layer_norm2"),
            ("attn", "self_attn"),
        ],
    },
    projectors: &[(ProjectorKind::PixelShuffle, &[("MP.proj", "vision_proj.proj")])],
};

/// A tensor in which other programs stack the query, key and value layers, and their names.
const STACKED: (&str, [&str; 3]) = ("qkv_proj", ["q_proj", "k_proj", "v_proj"]);

/// Names of the shared expert in Qwen2-MoE, of MiniMind2's shared experts, and of the gate that the
/// output of the former is multiplied with.
const SHARED_EXPERT: &str = "shared_expert";
const SHARED_EXPERTS: &str = "shared_experts";
const SHARED_GATE: &str = "shared_expert_gate";

/// The module around all layers of a projector, of which some are not read.
const PROJECTORS: [&str; 3] = ["multi_modal_projector.", "connector.", "MP."];

/// The layer after a linear projector, which must change nothing.
const IDENTITY: &str = "multi_modal_projector.linear_2.";

fn layout(format: ForeignFormat) -> &'static Layout {
    match format {
        ForeignFormat::Llava => &LLAVA,
        ForeignFormat::Idefics3 => &IDEFICS3,
        ForeignFormat::Lfm2Vl => &LFM2_VL,
        ForeignFormat::NanoVlm => &NANOVLM,
    }
}

impl Part {
    /// The name in this crate of the tensor `name`, if it belongs to this part.
    pub(crate) fn rename(&self, name: &str) -> Option<String> {
        let (rest, prefix) = self
            .prefixes
            .iter()
            .find_map(|&(prefix, new)| Some((name.strip_prefix(prefix)?, new)))?;
        let renamed = self
            .components
            .iter()
            .fold(rest.to_owned(), |name, &(old, new)| replace_component(&name, old, new));
        Some(format!("{prefix}{renamed}"))
    }
}

/// Replaces the components `old` of a dotted name by `new`.
fn replace_component(name: &str, old: &str, new: &str) -> String {
    let dotted = format!(".{name}.").replacen(&format!(".{old}."), &format!(".{new}."), 1);
    dotted.trim_matches('.').to_owned()
}

/// The language model of a whole model, under the names of [`LmNames`], and with `projector` the
/// projector under its own names. Tensors of an unknown purpose keep their names.
///
/// # Errors
/// A tensor that is left out would change the result; two tensors would get the same name.
pub(crate) fn language_model(
    weights: Weights,
    model: &ForeignModel,
    projector: Option<ProjectorKind>,
) -> Result<Weights, WeightsError> {
    let layout = layout(model.format());
    let shared =
        model.gated_shared_experts().map_err(|error| weights.refused(error.to_string()))?;
    let mut dropped = match shared {
        Some(_) => check_shared_experts(&weights, layout)?,
        None => Vec::new(),
    };
    if projector == Some(ProjectorKind::Linear) {
        dropped.extend(check_identity(&weights)?);
    }
    let of_kind =
        |(kind, layers): &(ProjectorKind, _)| (Some(*kind) == projector).then_some(*layers);
    let layers: &[(&str, &str)] = layout.projectors.iter().find_map(of_kind).unwrap_or(&[]);
    let weights = weights.derived(|info| {
        let name = info.name.as_str();
        if dropped.iter().any(|dropped| dropped == name) || layout.vision.rename(name).is_some() {
            return Vec::new();
        }
        let inner = inner_name(name);
        if projector.is_none() && PROJECTORS.iter().any(|module| inner.starts_with(module)) {
            return Vec::new();
        }
        let layer = layers.iter().find_map(|(old, new)| {
            let rest = inner.strip_prefix(old).filter(|rest| rest.starts_with('.'))?;
            Some(format!("{new}{rest}"))
        });
        if let Some(new) = layer {
            return vec![(new, Vec::new())];
        }
        let new = layout.language.rename(name).unwrap_or_else(|| name.to_owned());
        match shared {
            Some(count) => without_gate(new, count),
            None => vec![(new, Vec::new())],
        }
    })?;
    with_embeddings(weights)
}

/// The name of a tensor without the module around all parts, which some versions have.
fn inner_name(name: &str) -> &str {
    name.strip_prefix("model.").unwrap_or(name)
}

/// The vision encoder of a whole model under Hugging Face's names of CLIP and SigLIP, without the
/// blocks that the model does not use.
///
/// # Errors
/// The encoder is not supported; two tensors would get the same name.
pub(crate) fn vision_encoder(
    weights: Weights,
    model: &ForeignModel,
) -> Result<Weights, WeightsError> {
    let config = model.vision().map_err(|error| weights.refused(error.to_string()))?;
    let layout = layout(model.format());
    let blocks = format!("{}encoder.layers.", vision::scope());
    let is_used = |name: &str| {
        let rest = name.strip_prefix(&blocks).and_then(|rest| rest.split('.').next());
        rest.and_then(|block| block.parse::<i64>().ok())
            .is_none_or(|block| block < config.num_hidden_layers)
    };
    weights.derived(|info| {
        let Some(name) = layout.vision.rename(&info.name).filter(|name| is_used(name)) else {
            return Vec::new();
        };
        encoder_tensors(name, info)
    })
}

/// Under which names and how the tensor `info` of a vision encoder is read, whose name is `name`
/// after the renaming of its part.
pub(crate) fn encoder_tensors(name: String, info: &TensorInfo) -> Vec<(String, Vec<Transform>)> {
    let (stacked, parts) = STACKED;
    if name.split('.').any(|component| component == stacked) {
        let part = |(index, part): (usize, &&str)| {
            let transform = Transform::Chunk { dim: 0, index: index as i64, count: 3 };
            (replace_component(&name, stacked, part), vec![transform])
        };
        return parts.iter().enumerate().map(part).collect();
    }
    let kernel = format!("{}{}.weight", vision::scope(), vision::PATCH_EMBEDDING);
    let is_matrix = info.shape.len() == 2;
    let is_table = name == vision::position_embedding() && info.shape.len() == 3;
    let transforms = match (name == kernel && is_matrix, is_table) {
        (true, _) => vec![Transform::PatchKernel],
        (false, true) => vec![Transform::WithoutFirst],
        (false, false) => Vec::new(),
    };
    vec![(name, transforms)]
}

/// Under which names and how a tensor of a block with a gated shared expert is read: the gate is one
/// half, which the last layer of the expert takes in, and the expert is `count` experts side by
/// side.
fn without_gate(name: String, count: i64) -> Vec<(String, Vec<Transform>)> {
    if !name.split('.').any(|component| component == SHARED_EXPERT) {
        return vec![(name, Vec::new())];
    }
    let is_last = name.contains(".down_proj.");
    let part = |index| {
        let dim = usize::from(is_last);
        let mut transforms = vec![Transform::Chunk { dim, index, count }];
        transforms.extend(is_last.then_some(Transform::Half));
        let new = format!("{SHARED_EXPERTS}.{index}");
        (replace_component(&name, SHARED_EXPERT, &new), transforms)
    };
    (0..count).map(part).collect()
}

/// Checks that the gates of the shared experts are constant and that the query, key and value
/// layers have no biases, as MiniMind2 has none. Returns the names of these tensors.
fn check_shared_experts(weights: &Weights, layout: &Layout) -> Result<Vec<String>, WeightsError> {
    let is_gate = |name: &str| name.ends_with(&format!("{SHARED_GATE}.weight"));
    let is_bias = |name: &str| {
        STACKED.1.iter().any(|layer| name.ends_with(&format!("self_attn.{layer}.bias")))
    };
    let mut checked = Vec::new();
    for name in weights.names().filter(|name| layout.vision.rename(name).is_none()) {
        if !is_gate(name) && !is_bias(name) {
            continue;
        }
        if !is_zero(&weights.get(name)?) {
            let what = if is_gate(name) { "a shared expert with a gate" } else { "biases" };
            return Err(weights.refused(format!(
                "{name} is not zero: Qwen2's experts with {what} are not supported, only those \
                 that this program exported"
            )));
        }
        checked.push(name.to_owned());
    }
    Ok(checked)
}

/// Checks that the layer after a linear projector changes nothing: its weight is the identity and
/// its bias zero. Returns the names of its tensors.
fn check_identity(weights: &Weights) -> Result<Vec<String>, WeightsError> {
    let is_one = |name: &&str| inner_name(name).starts_with(IDENTITY);
    let names: Vec<String> = weights.names().filter(is_one).map(str::to_owned).collect();
    for name in &names {
        let tensor = weights.get(name)?;
        let is_neutral = match tensor.size().as_slice() {
            [rows, columns] if rows == columns => {
                let identity = Tensor::eye(*rows, (tensor.kind(), tensor.device()));
                is_zero(&(&tensor - identity))
            }
            _ => is_zero(&tensor),
        };
        if !is_neutral {
            return Err(weights.refused(format!(
                "projector_hidden_act is \"linear\", but {name} changes its input; only a second \
                 layer that changes nothing is supported"
            )));
        }
    }
    Ok(names)
}

fn is_zero(tensor: &Tensor) -> bool {
    tensor.count_nonzero(None::<i64>).int64_value(&[]) == 0
}

/// Names the output embeddings input embeddings if those are missing: of tied tensors, a file may
/// have only the one or the other.
fn with_embeddings(weights: Weights) -> Result<Weights, WeightsError> {
    let names = LmNames::of(LmFamily::Llama);
    let (input, output) = (LmNames::weight(names.embeddings), LmNames::weight(names.output));
    if weights.find(&input).is_some() {
        return Ok(weights);
    }
    weights.renamed(|name| if name == output { input.clone() } else { name.to_owned() })
}

/// The kind of projector of a whole model.
///
/// # Errors
/// The projector is not supported; the message names the file and the reason.
pub(crate) fn projector_of(
    weights: &Weights,
    model: &ForeignModel,
) -> Result<ProjectorKind, WeightsError> {
    let refused = |error: ShapeError| weights.refused(format!("{}: {error}", model.name()));
    Ok(model.projector().map_err(refused)?.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_only_as_whole_components() {
        let vision = &NANOVLM.vision;
        for (name, expected) in [
            ("vision_encoder.blocks.3.ln1.weight", "encoder.layers.3.layer_norm1.weight"),
            ("vision_encoder.layer_norm.bias", "post_layernorm.bias"),
            ("vision_encoder.patch_embedding.conv.bias", "embeddings.patch_embedding.bias"),
            (
                "vision_encoder.patch_embedding.position_embedding",
                "embeddings.position_embedding.weight",
            ),
            (
                "vision_encoder.blocks.0.attn.qkv_proj.bias",
                "encoder.layers.0.self_attn.qkv_proj.bias",
            ),
        ] {
            assert_eq!(vision.rename(name).unwrap(), format!("vision_model.{expected}"), "{name}");
        }
        let head = NANOVLM.language.rename("decoder.head.weight");
        assert_eq!(head.as_deref(), Some("lm_head.weight"));
        assert_eq!(NANOVLM.language.rename("MP.proj.weight"), None);
    }
}
