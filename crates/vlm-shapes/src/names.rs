//! Tensor names of each family of language models, in one table per family. A model is built from
//! its table, so that its parameters and the files that it writes have the family's own names.

use crate::family::LmFamily;

/// The names of one family, without `.weight` at the end. The names within a block are relative to
/// `layers` and the block's number.
#[derive(Debug, PartialEq, Eq)]
pub struct LmNames {
    /// The input embeddings.
    pub embeddings: &'static str,
    /// The output embeddings. If they are tied, this is another name of the input embeddings.
    pub output: &'static str,
    /// The norm after the last block.
    pub norm: &'static str,
    /// The list of transformer blocks.
    pub layers: &'static str,
    /// A block's first norm.
    pub attention_norm: &'static str,
    /// A block's attention; the next four names are relative to it.
    pub attention: &'static str,
    /// The query layer.
    pub query: &'static str,
    /// The key layer.
    pub key: &'static str,
    /// The value layer.
    pub value: &'static str,
    /// The output layer of attention.
    pub attention_output: &'static str,
    /// Norm of the queries, if there is one; relative to `attention`.
    pub query_norm: &'static str,
    /// Norm of the keys, if there is one; relative to `attention`.
    pub key_norm: &'static str,
    /// A block's second norm.
    pub ffn_norm: &'static str,
    /// A block's feed-forward layer or mixture of experts; the next names are relative to it.
    pub feed_forward: &'static str,
    /// The gate layer of a SwiGLU, whose output goes through SiLU.
    pub gate: &'static str,
    /// The up layer of a SwiGLU, whose output is multiplied by the gate.
    pub up: &'static str,
    /// The down layer of a SwiGLU, which returns to the hidden size.
    pub down: &'static str,
    /// The router, which chooses the experts of each token.
    pub router: &'static str,
    /// The list of routed experts.
    pub experts: &'static str,
    /// The shared experts, which process all tokens.
    pub shared_experts: &'static str,
    /// Whether `shared_experts` is a numbered list. If not, it is the only shared expert.
    pub numbers_shared_experts: bool,
}

/// The names of MiniMind of April 2025.
const MINIMIND: LmNames = LmNames {
    embeddings: "tok_embeddings",
    output: "output",
    norm: "norm",
    layers: "layers",
    attention_norm: "attention_norm",
    attention: "attention",
    query: "wq",
    key: "wk",
    value: "wv",
    attention_output: "wo",
    query_norm: "q_norm",
    key_norm: "k_norm",
    ffn_norm: "ffn_norm",
    feed_forward: "feed_forward",
    gate: "w1",
    up: "w3",
    down: "w2",
    router: "gate",
    experts: "experts",
    shared_experts: "shared_experts",
    numbers_shared_experts: false,
};

/// The names of Hugging Face's `LlamaForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM`, and
/// of later MiniMind models.
const HUGGING_FACE: LmNames = LmNames {
    embeddings: "model.embed_tokens",
    output: "lm_head",
    norm: "model.norm",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    attention: "self_attn",
    query: "q_proj",
    key: "k_proj",
    value: "v_proj",
    attention_output: "o_proj",
    query_norm: "q_norm",
    key_norm: "k_norm",
    ffn_norm: "post_attention_layernorm",
    feed_forward: "mlp",
    gate: "gate_proj",
    up: "up_proj",
    down: "down_proj",
    router: "gate",
    experts: "experts",
    shared_experts: "shared_experts",
    numbers_shared_experts: true,
};

impl LmNames {
    /// The names of a family.
    pub fn of(family: LmFamily) -> &'static Self {
        match family {
            LmFamily::MiniMind => &MINIMIND,
            LmFamily::MiniMind2 | LmFamily::MiniMind3 | LmFamily::Llama => &HUGGING_FACE,
        }
    }

    /// The name of the weight of `part`, a layer outside the blocks.
    pub fn weight(part: &str) -> String {
        format!("{part}.weight")
    }

    /// The name of a weight in block `index`; `path` leads to its layer, for example
    /// `[attention, query]`.
    pub fn block_weight(&self, index: i64, path: &[&str]) -> String {
        format!("{}.{index}.{}.weight", self.layers, path.join("."))
    }

    /// The name of a bias in block `index`, as [`Self::block_weight`].
    pub fn block_bias(&self, index: i64, path: &[&str]) -> String {
        format!("{}.{index}.{}.bias", self.layers, path.join("."))
    }

    /// The number of the block that the tensor `name` belongs to, if it belongs to one.
    pub fn block_of(&self, name: &str) -> Option<i64> {
        let rest = name.strip_prefix(self.layers)?.strip_prefix('.')?;
        rest.split('.').next()?.parse().ok()
    }

    /// Whether the model's output depends on the tensor `name`: it belongs to a block, to the
    /// embeddings or to the last norm, and is not a table ([`Self::is_table`]).
    pub fn is_computed_from(&self, name: &str) -> bool {
        let below = |part: &str| name.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'));
        !self.is_table(name)
            && [self.embeddings, self.output, self.norm, self.layers].into_iter().any(below)
    }

    /// Whether the tensor `name` is a table of rotary angles or a mask. Older programs saved them;
    /// the model computes them itself.
    pub fn is_table(&self, name: &str) -> bool {
        const TABLES: [&str; 9] = [
            "bias_mask", "causal_mask", "cos_cached", "freqs_cis", "freqs_cos", "freqs_sin",
            "inv_freq", "mask", "sin_cached",
        ];
        TABLES.contains(&name.rsplit('.').next().unwrap_or(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_number_is_found_in_the_names_of_a_block() {
        for family in [LmFamily::MiniMind, LmFamily::MiniMind3, LmFamily::Llama] {
            let names = LmNames::of(family);
            let name = names.block_weight(12, &[names.attention, names.query]);
            assert_eq!(names.block_of(&name), Some(12), "{name}");
            assert_eq!(names.block_of(&LmNames::weight(names.norm)), None);
        }
        assert_eq!(
            HUGGING_FACE.block_weight(0, &[HUGGING_FACE.attention, HUGGING_FACE.query]),
            "model.layers.0.self_attn.q_proj.weight"
        );
    }
}
