//! What each family of language models calls its tensors: one table a family, from which a model is
//! built, so that its parameters, and with them every file it writes, carry the family's own names.

use crate::LmFamily;

/// The names of one family, each without `.weight`. Those of a block stand below `layers` and the
/// block's number.
#[derive(Debug, PartialEq, Eq)]
pub struct LmNames {
    /// The table of input embeddings.
    pub embeddings: &'static str,
    /// The output embeddings, another name of the same tensor where the two are tied.
    pub output: &'static str,
    /// The norm after the last block.
    pub norm: &'static str,
    /// The blocks.
    pub layers: &'static str,
    /// A block's first norm.
    pub attention_norm: &'static str,
    /// A block's attention; its layers stand below.
    pub attention: &'static str,
    /// Queries, keys, values, output.
    pub query: &'static str,
    /// See `query`.
    pub key: &'static str,
    /// See `query`.
    pub value: &'static str,
    /// See `query`.
    pub attention_output: &'static str,
    /// Norm of the queries, where there is one.
    pub query_norm: &'static str,
    /// Norm of the keys, where there is one.
    pub key_norm: &'static str,
    /// A block's second norm.
    pub ffn_norm: &'static str,
    /// A block's feed-forward layer, or its experts; their layers stand below.
    pub feed_forward: &'static str,
    /// The layer under the SiLU.
    pub gate: &'static str,
    /// The layer beside it.
    pub up: &'static str,
    /// The layer back to the hidden size.
    pub down: &'static str,
    /// What chooses a token's experts.
    pub router: &'static str,
    /// The routed experts; below, their numbers.
    pub experts: &'static str,
    /// The experts that process all tokens.
    pub shared_experts: &'static str,
    /// Whether the shared experts have numbers below `shared_experts`; if not, there is at most one.
    pub numbers_shared_experts: bool,
}

/// MiniMind of April 2025.
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

/// Hugging Face's `LlamaForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM`, and MiniMind's
/// later forms.
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
    /// The table of a family.
    pub fn of(family: LmFamily) -> &'static Self {
        match family {
            LmFamily::MiniMind => &MINIMIND,
            LmFamily::MiniMind2 | LmFamily::MiniMind3 | LmFamily::Llama => &HUGGING_FACE,
        }
    }

    /// The weight of one of the parts outside the blocks.
    pub fn weight(part: &str) -> String {
        format!("{part}.weight")
    }

    /// The weight of a part of block `index`; `path` leads to it, `[attention, query]` say.
    pub fn block_weight(&self, index: i64, path: &[&str]) -> String {
        format!("{}.{index}.{}.weight", self.layers, path.join("."))
    }

    /// The bias of a part of block `index`, see [`Self::block_weight`].
    pub fn block_bias(&self, index: i64, path: &[&str]) -> String {
        format!("{}.{index}.{}.bias", self.layers, path.join("."))
    }

    /// The number of the block that a tensor belongs to, if it belongs to one.
    pub fn block_of(&self, name: &str) -> Option<i64> {
        let rest = name.strip_prefix(self.layers)?.strip_prefix('.')?;
        rest.split('.').next()?.parse().ok()
    }

    /// Whether a tensor of that name takes part in what the model computes, so that a model without
    /// it computes something else: it is below a block, an embedding or the last norm. Tables of
    /// rotary angles and masks, which older programs saved, do not take part.
    pub fn is_computed_from(&self, name: &str) -> bool {
        let below = |part: &str| name.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'));
        !self.is_table(name)
            && [self.embeddings, self.output, self.norm, self.layers].into_iter().any(below)
    }

    /// Whether a tensor of that name is a table of rotary angles or a mask, which the model computes
    /// itself.
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
    fn names_of_blocks_lead_there_and_back() {
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
