//! The language model's tensors as transformers' stock classes name and order them.

use tch::{Device, Kind, Tensor};
use vlm_model::names::LmNames;
use vlm_model::weights::{Weights, WeightsError};
use vlm_model::{LmConfig, LmFamily};
use vlm_shapes::RotaryLayout;

use crate::InferError;

/// Named tensors.
pub(super) type Tensors = Vec<(String, Tensor)>;

/// The tensors of the class that [`LmConfig::to_transformers_json`] describes, without tied output
/// embeddings. The rows of query and key layers with interleaved rotary embedding are reordered for
/// half-split rotary embedding, which transformers uses.
///
/// # Errors
/// A tensor cannot be read.
pub(super) fn transformers_tensors(
    lm: &LmConfig,
    weights: &Weights,
) -> Result<Tensors, InferError> {
    let mut renamed = Renamed { lm, weights, tensors: Vec::new() };
    let (from, to) = (lm.names(), renamed.to());
    renamed.copy(&LmNames::weight(from.embeddings), LmNames::weight(to.embeddings))?;
    for index in 0..lm.n_layers {
        renamed.add_block(index)?;
    }
    renamed.copy(&LmNames::weight(from.norm), LmNames::weight(to.norm))?;
    if !lm.tie_word_embeddings {
        renamed.copy(&LmNames::weight(from.output), LmNames::weight(to.output))?;
    }
    Ok(renamed.tensors)
}

/// Extends the embeddings to `vocab_size` rows. The new rows are copies of row `like`: a row of
/// zeros would have the logit 0 under tied embeddings, which can be the largest one.
///
/// # Errors
/// A failure of libtorch.
pub(super) fn extend_vocabulary(
    tensors: &mut Tensors,
    vocab_size: i64,
    like: i64,
) -> Result<(), InferError> {
    let names = LmNames::of(LmFamily::Llama);
    let tables = [LmNames::weight(names.embeddings), LmNames::weight(names.output)];
    for (name, table) in tensors.iter_mut().filter(|(name, _)| tables.contains(name)) {
        let missing = vocab_size - table.size()[0];
        if missing > 0 {
            let failed = failed(name);
            let rows = Tensor::from_slice(&vec![like; missing as usize]);
            let copies = table.f_index_select(0, &rows).map_err(&failed)?;
            *table = Tensor::f_cat(&[&*table, &copies], 0).map_err(&failed)?;
        }
    }
    Ok(())
}

/// For `map_err`: an error of libtorch at the tensor `name`.
pub(super) fn failed(name: &str) -> impl Fn(tch::TchError) -> InferError + use<> {
    let name = name.to_owned();
    move |error| {
        let source = vlm_torch::Error::Torch { operation: "convert", message: error.to_string() };
        WeightsError::Tensor { name: name.clone(), source }.into()
    }
}

struct Renamed<'a> {
    lm: &'a LmConfig,
    weights: &'a Weights,
    tensors: Tensors,
}

impl Renamed<'_> {
    fn to(&self) -> &'static LmNames {
        LmNames::of(LmFamily::Llama)
    }

    fn copy(&mut self, from: &str, to: String) -> Result<(), InferError> {
        self.tensors.push((to, self.weights.get(from)?));
        Ok(())
    }

    fn add_block(&mut self, index: i64) -> Result<(), InferError> {
        let (from, to) = (self.lm.names(), self.to());
        for (norm, renamed) in
            [(from.attention_norm, to.attention_norm), (from.ffn_norm, to.ffn_norm)]
        {
            self.copy(&from.block_weight(index, &[norm]), to.block_weight(index, &[renamed]))?;
        }
        self.add_attention(index)?;
        let scope = format!("{}.{index}.{}", from.layers, from.feed_forward);
        let renamed = format!("{}.{index}.{}", to.layers, to.feed_forward);
        match self.lm.use_moe {
            true => self.add_experts(&scope, &renamed),
            false => self.add_swiglu(&scope, &renamed),
        }
    }

    fn add_attention(&mut self, index: i64) -> Result<(), InferError> {
        let (lm, from, to) = (self.lm, self.lm.names(), self.to());
        let scope = format!("{}.{index}.{}", from.layers, from.attention);
        let renamed = format!("{}.{index}.{}", to.layers, to.attention);
        let layers = [
            (from.query, to.query, lm.n_heads, true, lm.qkv_bias),
            (from.key, to.key, lm.n_kv_heads, true, lm.qkv_bias),
            (from.value, to.value, lm.n_kv_heads, false, lm.qkv_bias),
            (from.attention_output, to.attention_output, 0, false, lm.attention_output_bias),
        ];
        for (layer, layer_renamed, num_heads, is_rotated, has_bias) in layers {
            let kinds = if has_bias { &["weight", "bias"][..] } else { &["weight"] };
            for kind in kinds {
                let tensor = self.weights.get(&format!("{scope}.{layer}.{kind}"))?;
                let name = format!("{renamed}.{layer_renamed}.{kind}");
                let tensor =
                    if is_rotated { self.half_split(&name, tensor, num_heads)? } else { tensor };
                self.tensors.push((name, tensor));
            }
            // The class with shared experts has biases at queries, keys and values.
            if lm.use_moe && !lm.qk_norm && num_heads > 0 && !has_bias {
                let kind = self.tensors.last().map_or(Kind::Float, |(_, tensor)| tensor.kind());
                let zeros = Tensor::zeros([num_heads * lm.head_dim()], (kind, Device::Cpu));
                self.tensors.push((format!("{renamed}.{layer_renamed}.bias"), zeros));
            }
        }
        if lm.qk_norm {
            for (norm, norm_renamed) in
                [(from.query_norm, to.query_norm), (from.key_norm, to.key_norm)]
            {
                let tensor = self.weights.get(&format!("{scope}.{norm}.weight"))?;
                let name = format!("{renamed}.{norm_renamed}.weight");
                let tensor = self.half_split(&name, tensor, 1)?;
                self.tensors.push((name, tensor));
            }
        }
        Ok(())
    }

    /// Reorders the first dimension, `num_heads` times the width D of a head, from adjacent pairs
    /// to halves: row `2 i + j` of a head becomes row `j D / 2 + i`.
    fn half_split(&self, name: &str, tensor: Tensor, num_heads: i64) -> Result<Tensor, InferError> {
        if self.lm.rotary_layout == RotaryLayout::HalfSplit {
            return Ok(tensor);
        }
        let pairs = [num_heads, self.lm.head_dim() / 2, 2, -1];
        let shape = tensor.size();
        tensor
            .f_reshape(pairs)
            .and_then(|pairs| pairs.f_transpose(1, 2))
            .and_then(|halves| halves.f_reshape(&shape))
            .map_err(failed(name))
    }

    fn add_swiglu(&mut self, scope: &str, renamed: &str) -> Result<(), InferError> {
        let (from, to) = (self.lm.names(), self.to());
        for (layer, layer_renamed) in [(from.gate, to.gate), (from.up, to.up), (from.down, to.down)]
        {
            let kinds = if self.lm.mlp_bias { &["weight", "bias"][..] } else { &["weight"] };
            for kind in kinds {
                self.copy(
                    &format!("{scope}.{layer}.{kind}"),
                    format!("{renamed}.{layer_renamed}.{kind}"),
                )?;
            }
        }
        Ok(())
    }

    fn add_experts(&mut self, scope: &str, renamed: &str) -> Result<(), InferError> {
        let (lm, from, to) = (self.lm, self.lm.names(), self.to());
        let router = format!("{renamed}.{}.weight", to.router);
        self.copy(&format!("{scope}.{}.weight", from.router), router)?;
        for expert in 0..lm.moe.n_routed_experts {
            self.add_swiglu(
                &format!("{scope}.{}.{expert}", from.experts),
                &format!("{renamed}.{}.{expert}", to.experts),
            )?;
        }
        match lm.qk_norm {
            true => Ok(()),
            false => self.add_shared_expert(scope, renamed),
        }
    }

    /// Joins the shared experts to one, as wide as all of them. Its gate is ½ for every token, so
    /// the down layer is doubled. Without shared experts it is zero.
    fn add_shared_expert(&mut self, scope: &str, renamed: &str) -> Result<(), InferError> {
        let (lm, from, to) = (self.lm, self.lm.names(), self.to());
        let shared = format!("{scope}.{}", from.shared_experts);
        let scopes: Vec<String> = match lm.num_shared_experts() {
            count if from.numbers_shared_experts => {
                (0..count).map(|expert| format!("{shared}.{expert}")).collect()
            }
            0 => Vec::new(),
            _ => vec![shared],
        };
        let kind = self.tensors.last().map_or(Kind::Float, |(_, tensor)| tensor.kind());
        let width = lm.intermediate_size();
        // The dimension of the expert's width, and the shape of an expert that is not there.
        let layers = [
            (from.gate, to.gate, 0, [width, lm.dim]),
            (from.up, to.up, 0, [width, lm.dim]),
            (from.down, to.down, 1, [lm.dim, width]),
        ];
        for (layer, layer_renamed, dim, shape) in layers {
            let name = format!("{renamed}.shared_expert.{layer_renamed}.weight");
            let parts: Result<Vec<Tensor>, WeightsError> = scopes
                .iter()
                .map(|scope| self.weights.get(&format!("{scope}.{layer}.weight")))
                .collect();
            let parts = parts?;
            let joined = match parts.as_slice() {
                [] => Ok(Tensor::zeros(shape, (kind, Device::Cpu))),
                parts => Tensor::f_cat(parts, dim),
            };
            let factor = if dim == 1 { 2.0 } else { 1.0 };
            let joined = joined.and_then(|joined| joined.f_mul_scalar(factor));
            self.tensors.push((name.clone(), joined.map_err(failed(&name))?));
        }
        let gate = Tensor::zeros([1, lm.dim], (kind, Device::Cpu));
        self.tensors.push((format!("{renamed}.shared_expert_gate.weight"), gate));
        Ok(())
    }
}
