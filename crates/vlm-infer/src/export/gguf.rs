//! The GGUF container: `model.gguf` with language model and tokenizer, and `mmproj.gguf` with the
//! vision encoder and the projector, as llama.cpp reads them.

use std::path::Path;

use serde_json::Value;
use tch::{Kind, Tensor};
use vlm_model::LmConfig;
use vlm_model::weights::{GgufValue, save_gguf};
use vlm_shapes::RopeScaling;

use super::joined::{Joined, identity_layer};
use super::language_model::{Tensors, failed, transformers_tensors};
use super::parts::Parts;
use crate::InferError;

/// Metadata in the order in which it is written.
type Metadata = Vec<(String, GgufValue)>;

/// Writes `model.gguf` and, for a vision-language model, `mmproj.gguf` to `folder`.
///
/// # Errors
/// A part that llama.cpp does not compute in the same way, with the reason; a tokenizer that it
/// does not know; a file that cannot be read or written.
pub(super) fn write(
    parts: &Parts,
    joined: Option<&Joined>,
    folder: &Path,
) -> Result<(), InferError> {
    let architecture = architecture(&parts.lm)?;
    let mut metadata = describe_lm(&parts.lm, architecture);
    metadata.extend(describe_tokenizer(parts)?);
    let tensors = lm_tensors(parts, architecture)?;
    save_gguf(&folder.join("model.gguf"), &metadata, &tensors)?;
    if let Some(joined) = joined {
        let tensors = mmproj_tensors(joined)?;
        save_gguf(&folder.join("mmproj.gguf"), &describe_mmproj(joined), &tensors)?;
    }
    Ok(())
}

/// llama.cpp's name of the architecture.
///
/// # Errors
/// None of them computes the same as the model.
fn architecture(lm: &LmConfig) -> Result<&'static str, InferError> {
    let differs = |what: &str| {
        Err(InferError::unusable(format!(
            "the container gguf does not hold this model exactly: {what}; export it with \
             `export_hf`"
        )))
    };
    if lm.use_moe {
        return differs("its experts are weighted differently in llama.cpp");
    }
    if !matches!(lm.rope_scaling, RopeScaling::None | RopeScaling::Linear { .. }) {
        return differs("its rotary embedding is scaled in a way that is not exported");
    }
    match (lm.qk_norm, lm.qkv_bias) {
        (true, false) => Ok("qwen3"),
        (true, true) => differs("llama.cpp has no biases beside normalised queries and keys"),
        (false, true) if !lm.attention_output_bias => Ok("qwen2"),
        (false, _) => Ok("llama"),
    }
}

fn describe_lm(lm: &LmConfig, architecture: &str) -> Metadata {
    let count = |value: i64| GgufValue::U32(u32::try_from(value).unwrap_or(u32::MAX));
    let mut metadata = vec![
        ("general.architecture".to_owned(), GgufValue::Text(architecture.to_owned())),
        ("general.name".to_owned(), GgufValue::Text("vlm".to_owned())),
    ];
    let mut add = |key: &str, value: GgufValue| {
        metadata.push((format!("{architecture}.{key}"), value));
    };
    add("context_length", count(lm.max_positions()));
    add("embedding_length", count(lm.dim));
    add("block_count", count(lm.n_layers));
    add("feed_forward_length", count(lm.intermediate_size()));
    add("attention.head_count", count(lm.n_heads));
    add("attention.head_count_kv", count(lm.n_kv_heads));
    add("attention.layer_norm_rms_epsilon", GgufValue::F32(lm.norm_eps as f32));
    add("attention.key_length", count(lm.head_dim()));
    add("attention.value_length", count(lm.head_dim()));
    add("rope.freq_base", GgufValue::F32(lm.rope_theta as f32));
    add("rope.dimension_count", count(lm.head_dim()));
    if let RopeScaling::Linear { factor } = lm.rope_scaling {
        add("rope.scaling.type", GgufValue::Text("linear".into()));
        add("rope.scaling.factor", GgufValue::F32(factor as f32));
    }
    add("vocab_size", count(lm.vocab_size));
    metadata
}

/// The byte-level BPE tokenizers that llama.cpp has the same pre-tokenizer for.
///
/// # Errors
/// The tokenizer is another one.
fn pre_tokenizer(parts: &Parts, tokenizer: &Value) -> Result<&'static str, InferError> {
    let byte_level = |value: &Value| {
        value["type"] == "ByteLevel"
            && value["add_prefix_space"] != true
            && value["use_regex"] != false
    };
    let found = &tokenizer["pre_tokenizer"];
    let steps = found["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = match steps {
        [] if byte_level(found) => Some("gpt-2"),
        [digits, rest]
            if digits["type"] == "Digits"
                && digits["individual_digits"] == true
                && byte_level(rest) =>
        {
            Some("smollm")
        }
        [split, rest]
            if split["pattern"]["Regex"] == QWEN2_PATTERN
                && rest["type"] == "ByteLevel"
                && rest["use_regex"] == false =>
        {
            Some("qwen2")
        }
        _ => None,
    };
    let is_bpe = tokenizer["model"]["type"] == "BPE";
    name.filter(|_| is_bpe).ok_or_else(|| {
        InferError::unusable(format!(
            "the container gguf does not hold this model exactly: llama.cpp has no pre-tokenizer \
             that splits texts like {}; expected the byte-level BPE of GPT-2, SmolLM2 or Qwen2",
            parts.tokenizer_folder.join("tokenizer.json").display()
        ))
    })
}

/// The pattern with which Qwen2's tokenizer splits texts.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Token types of GGUF.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

fn describe_tokenizer(parts: &Parts) -> Result<Metadata, InferError> {
    let tokenizer = parts.tokenizer_json()?;
    let pre = pre_tokenizer(parts, &tokenizer)?;
    let size = usize::try_from(parts.lm.vocab_size).unwrap_or(0);
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED; size];
    let mut set = |id: &Value, text: &str, kind: i32| {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < size);
        if let Some(id) = id {
            text.clone_into(&mut tokens[id]);
            types[id] = kind;
        }
    };
    for (text, id) in tokenizer["model"]["vocab"].as_object().into_iter().flatten() {
        set(id, text, NORMAL);
    }
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        set(&token["id"], token["content"].as_str().unwrap_or_default(), kind);
    }
    let merges = tokenizer["model"]["merges"].as_array().into_iter().flatten().map(|merge| {
        // A text "a b", or since tokenizers 0.20 a pair.
        let pair = || Some(format!("{} {}", merge[0].as_str()?, merge[1].as_str()?));
        GgufValue::Text(merge.as_str().map(str::to_owned).or_else(pair).unwrap_or_default())
    });
    let id = |id: i64| GgufValue::U32(u32::try_from(id).unwrap_or(0));
    let opened = &parts.tokenizer;
    let mut metadata: Vec<(&str, GgufValue)> = vec![
        ("model", GgufValue::Text("gpt2".into())),
        ("pre", GgufValue::Text(pre.into())),
        ("tokens", GgufValue::List(tokens.into_iter().map(GgufValue::Text).collect())),
        ("token_type", GgufValue::List(types.into_iter().map(GgufValue::I32).collect())),
        ("merges", GgufValue::List(merges.collect())),
        ("eos_token_id", id(opened.eos_token_id())),
        ("padding_token_id", id(opened.pad_token_id())),
        ("add_bos_token", GgufValue::Bool(false)),
        ("add_eos_token", GgufValue::Bool(false)),
    ];
    let bos = opened.special_tokens().get("bos_token");
    if let Some(bos) = bos.and_then(|token| opened.token_to_id(token)) {
        metadata.push(("bos_token_id", id(bos)));
    }
    let mut metadata: Metadata =
        metadata.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    let template = GgufValue::Text(opened.chat_template().to_owned());
    metadata.push(("tokenizer.chat_template".to_owned(), template));
    Ok(metadata)
}

/// The names of a block's layers in transformers and in GGUF.
const LAYERS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The language model's tensors. llama.cpp's `llama` rotates adjacent elements of a head, its
/// `qwen2` and `qwen3` rotate halves as transformers does.
fn lm_tensors(parts: &Parts, architecture: &str) -> Result<Tensors, InferError> {
    let lm = &parts.lm;
    let mut tensors = Vec::new();
    for (name, tensor) in transformers_tensors(lm, &parts.weights)? {
        let renamed = lm_name(&name);
        let num_heads = match &name {
            _ if architecture != "llama" => None,
            name if name.contains(".q_proj.") => Some(lm.n_heads),
            name if name.contains(".k_proj.") => Some(lm.n_kv_heads),
            _ => None,
        };
        let tensor = match num_heads {
            Some(num_heads) => interleaved(&name, &tensor, num_heads, lm.head_dim())?,
            None => tensor,
        };
        tensors.push((renamed, norms_in_float32(tensor)));
    }
    Ok(tensors)
}

fn lm_name(name: &str) -> String {
    let block = |name: &str| {
        let (index, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (layer, kind) = rest.rsplit_once('.')?;
        let (_, renamed) = LAYERS.iter().find(|(from, _)| *from == layer)?;
        Some(format!("blk.{index}.{renamed}.{kind}"))
    };
    match name {
        "model.embed_tokens.weight" => "token_embd.weight".into(),
        "model.norm.weight" => "output_norm.weight".into(),
        "lm_head.weight" => "output.weight".into(),
        _ => block(name).unwrap_or_else(|| name.to_owned()),
    }
}

/// Reorders the first dimension from halves to adjacent pairs: row `j D / 2 + i` of a head of width
/// D becomes row `2 i + j`.
fn interleaved(
    name: &str,
    tensor: &Tensor,
    num_heads: i64,
    head_dim: i64,
) -> Result<Tensor, InferError> {
    let shape = tensor.size();
    tensor
        .f_reshape([num_heads, 2, head_dim / 2, -1])
        .and_then(|halves| halves.f_transpose(1, 2))
        .and_then(|pairs| pairs.f_reshape(&shape))
        .map_err(failed(name))
}

/// llama.cpp needs vectors (norms and biases) in float32.
fn norms_in_float32(tensor: Tensor) -> Tensor {
    if tensor.dim() == 1 { tensor.to_kind(Kind::Float) } else { tensor }
}

fn describe_mmproj(joined: &Joined) -> Metadata {
    let vision = joined.vision;
    let count = |value: i64| GgufValue::U32(u32::try_from(value).unwrap_or(u32::MAX));
    let three = |key: &str| {
        let values = joined.preprocessing[key].as_array().into_iter().flatten();
        let values = values.map(|value| GgufValue::F32(value.as_f64().unwrap_or(0.0) as f32));
        GgufValue::List(values.collect())
    };
    let settings = [
        ("clip.has_vision_encoder", GgufValue::Bool(true)),
        ("clip.projector_type", GgufValue::Text("janus_pro".into())),
        ("clip.use_gelu", GgufValue::Bool(vision.hidden_act != "quick_gelu")),
        ("clip.vision.image_size", count(vision.image_size)),
        ("clip.vision.patch_size", count(vision.patch_size)),
        ("clip.vision.embedding_length", count(vision.hidden_size)),
        ("clip.vision.feed_forward_length", count(vision.intermediate_size)),
        ("clip.vision.block_count", count(vision.num_hidden_layers)),
        ("clip.vision.projection_dim", count(joined.parts.lm.dim)),
        ("clip.vision.attention.head_count", count(vision.num_attention_heads)),
        ("clip.vision.attention.layer_norm_epsilon", GgufValue::F32(vision.layer_norm_eps as f32)),
        ("clip.vision.image_mean", three("image_mean")),
        ("clip.vision.image_std", three("image_std")),
    ];
    let mut metadata =
        vec![("general.architecture".to_owned(), GgufValue::Text("clip".to_owned()))];
    metadata.extend(settings.into_iter().map(|(key, value)| (key.to_owned(), value)));
    metadata
}

/// The names of an encoder block's layers in transformers and in GGUF.
const ENCODER_LAYERS: [(&str, &str); 8] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.out_proj", "attn_out"),
    ("layer_norm1", "ln1"),
    ("layer_norm2", "ln2"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
];

/// The encoder and the projector, in float32. The projector of the type `janus_pro` has two layers
/// with a GELU between them; since gelu(x) − gelu(−x) = x, they compute one linear layer if the
/// first one gives x and −x, and the second one their difference.
fn mmproj_tensors(joined: &Joined) -> Result<Tensors, InferError> {
    let mut tensors: Tensors = Vec::new();
    for (name, tensor) in joined.encoder_tensors("")? {
        tensors.push((encoder_name(&name), tensor.to_kind(Kind::Float)));
    }
    let read =
        |name: &str| Ok::<_, InferError>(joined.projector_tensor(name)?.to_kind(Kind::Float));
    let (weight, bias) = (read("vision_proj.0.weight")?, read("vision_proj.0.bias")?);
    let (identity, zeros) = identity_layer(weight.size()[0], Kind::Float);
    let both = |name: &str, tensor: &Tensor, dim: i64| {
        let negated = tensor.f_neg().map_err(failed(name))?;
        Tensor::f_cat(&[tensor, &negated], dim).map_err(failed(name))
    };
    for (name, tensor) in [
        ("mm.0.weight", both("mm.0.weight", &weight, 0)?),
        ("mm.0.bias", both("mm.0.bias", &bias, 0)?),
        ("mm.1.weight", both("mm.1.weight", &identity, 1)?),
        ("mm.1.bias", zeros),
    ] {
        tensors.push((name.to_owned(), tensor));
    }
    Ok(tensors)
}

fn encoder_name(name: &str) -> String {
    let name = name.strip_prefix("vision_model.").unwrap_or(name);
    let block = |name: &str| {
        let (index, rest) = name.strip_prefix("encoder.layers.")?.split_once('.')?;
        let (layer, kind) = rest.rsplit_once('.')?;
        let (_, renamed) = ENCODER_LAYERS.iter().find(|(from, _)| *from == layer)?;
        Some(format!("v.blk.{index}.{renamed}.{kind}"))
    };
    let outer = |name: &str| {
        let (layer, kind) = name.rsplit_once('.')?;
        let renamed = match layer {
            "embeddings.patch_embedding" => "v.patch_embd",
            "embeddings.position_embedding" => "v.position_embd",
            "post_layernorm" => "v.post_ln",
            _ => return None,
        };
        Some(format!("{renamed}.{kind}"))
    };
    block(name).or_else(|| outer(name)).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_llama_cpp() {
        assert_eq!(lm_name("model.layers.3.self_attn.q_norm.weight"), "blk.3.attn_q_norm.weight");
        assert_eq!(lm_name("model.layers.0.mlp.down_proj.weight"), "blk.0.ffn_down.weight");
        assert_eq!(lm_name("model.norm.weight"), "output_norm.weight");
        let name = "vision_model.encoder.layers.11.layer_norm2.bias";
        assert_eq!(encoder_name(name), "v.blk.11.ln2.bias");
        assert_eq!(encoder_name("vision_model.post_layernorm.weight"), "v.post_ln.weight");
    }

    #[test]
    fn pairs_of_a_head_become_adjacent() {
        let rows = Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 5, 6, 7]);
        let pairs = interleaved("q", &rows, 2, 4).unwrap();
        assert_eq!(Vec::<i64>::try_from(pairs).unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn what_llama_cpp_computes_differently_is_refused() {
        let experts = LmConfig { use_moe: true, ..LmConfig::default() };
        let error = architecture(&experts).unwrap_err().to_string();
        assert!(error.contains("experts"), "{error}");
        assert_eq!(architecture(&LmConfig::default()).unwrap(), "llama");
    }
}
