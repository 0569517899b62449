//! The configuration of a language model for the stock classes of Hugging Face's transformers, for
//! every family: MiniMind's own classes are not among them.

use serde_json::{Value, json};

use crate::{LmConfig, LmFamily, RotaryLayout, ShapeError};

impl LmConfig {
    /// The `config.json` of the class in transformers that computes the same as this model with
    /// half-split rotary embedding: `llama`, `qwen2` or `qwen3`, and with experts `qwen2_moe` or
    /// `qwen3_moe`. Settings that concern only the training (dropout, load balancing) are left out.
    ///
    /// A shared expert of `qwen2_moe` has a gate, the sigmoid of a linear layer. With weights of
    /// zero the gate is ½, so the weights of the down layer must be doubled. Its query, key and
    /// value layers have biases, which must be zero where this model has none.
    ///
    /// # Errors
    /// Experts beside biases, or shared experts beside normalised queries and keys: no class has
    /// both.
    pub fn to_transformers_json(&self) -> Result<Value, ShapeError> {
        let plain = Self {
            family: LmFamily::Llama,
            rotary_layout: RotaryLayout::HalfSplit,
            head_dim: Some(self.head_dim()),
            hidden_dim: Some(self.intermediate_size()),
            max_seq_len: self.max_positions(),
            dropout: 0.0,
            attention_dropout: None,
            use_moe: false,
            ..self.clone()
        };
        let mut tree = plain.to_json();
        if !self.use_moe {
            return Ok(tree);
        }
        if self.qkv_bias || self.attention_output_bias || self.mlp_bias {
            return Err(ShapeError::Config(
                "the model has experts and biases, which no class of transformers has".into(),
            ));
        }
        let (moe, num_shared) = (&self.moe, self.num_shared_experts());
        let (model_type, class) = match self.qk_norm {
            true => ("qwen3_moe", "Qwen3MoeForCausalLM"),
            false => ("qwen2_moe", "Qwen2MoeForCausalLM"),
        };
        if self.qk_norm && num_shared > 0 {
            return Err(ShapeError::Config(
                "the model has shared experts and normalised queries and keys, which no class of \
                 transformers has"
                    .into(),
            ));
        }
        tree["model_type"] = json!(model_type);
        tree["architectures"] = json!([class]);
        tree["num_experts"] = json!(moe.n_routed_experts);
        tree["num_experts_per_tok"] = json!(moe.num_experts_per_tok);
        tree["moe_intermediate_size"] = json!(self.intermediate_size());
        tree["norm_topk_prob"] =
            json!(moe.norm_topk_prob && (moe.num_experts_per_tok > 1 || moe.norm_single_expert));
        tree["router_aux_loss_coef"] = json!(moe.aux_loss_alpha);
        tree["decoder_sparse_step"] = json!(1);
        tree["mlp_only_layers"] = json!([]);
        tree["use_sliding_window"] = json!(false);
        if !self.qk_norm {
            tree["shared_expert_intermediate_size"] =
                json!(self.intermediate_size() * num_shared.max(1));
        }
        Ok(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MoeConfig;

    #[test]
    fn each_family_has_a_class_of_transformers() {
        let class =
            |config: &LmConfig| config.to_transformers_json().unwrap()["model_type"].clone();
        assert_eq!(class(&LmConfig::default()), "llama");
        assert_eq!(class(&LmFamily::MiniMind3.default_config()), "qwen3");
        let experts = |family: LmFamily| LmConfig { use_moe: true, ..family.default_config() };
        assert_eq!(class(&experts(LmFamily::MiniMind)), "qwen2_moe");
        assert_eq!(class(&experts(LmFamily::MiniMind3)), "qwen3_moe");
        let qwen2 = LmConfig { qkv_bias: true, ..LmFamily::Llama.default_config() };
        assert_eq!(class(&qwen2), "qwen2");
    }

    #[test]
    fn lengths_and_widths_are_those_that_the_model_computes_with() {
        let json = LmConfig::default().to_transformers_json().unwrap();
        assert_eq!((&json["intermediate_size"], &json["head_dim"]), (&json!(1408), &json!(64)));
        // MiniMind of April 2025 generates up to three times the length of training.
        assert_eq!(json["max_position_embeddings"], 2048);
        let shared = LmConfig {
            use_moe: true,
            moe: MoeConfig { n_shared_experts: Some(2), ..MoeConfig::default() },
            ..LmFamily::MiniMind2.default_config()
        };
        let json = shared.to_transformers_json().unwrap();
        assert_eq!(json["shared_expert_intermediate_size"], 2 * 1408);
    }

    #[test]
    fn what_no_class_has_is_refused_by_name() {
        let shared = LmConfig {
            use_moe: true,
            qk_norm: true,
            moe: MoeConfig { n_shared_experts: Some(1), ..MoeConfig::default() },
            ..LmConfig::default()
        };
        let error = shared.to_transformers_json().unwrap_err().to_string();
        assert!(error.contains("shared experts and normalised"), "{error}");
    }
}
