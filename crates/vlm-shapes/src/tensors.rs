//! Names and shapes of a model's tensors, without creating them.
//!
//! The lists have the order in which `vlm-model` creates its parameters; a test there checks this.

use crate::{LmConfig, LmNames, PROJECTOR_SCOPE, ProjectorConfig, ProjectorKind};
use crate::{VisionConfig, VisionFamily};

/// The name and shape of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorShape {
    /// The name in the weights files of its family.
    pub name: String,
    /// Size of each dimension.
    pub shape: Vec<i64>,
}

impl TensorShape {
    /// Number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// A list of tensors that is being made.
struct List(Vec<TensorShape>);

impl List {
    fn add(&mut self, name: String, shape: &[i64]) {
        self.0.push(TensorShape { name, shape: shape.to_vec() });
    }

    /// A linear layer: `weight` `[out, in]` and, with a bias, `bias` `[out]`.
    fn linear(&mut self, name: &str, in_dim: i64, out_dim: i64, has_bias: bool) {
        self.add(format!("{name}.weight"), &[out_dim, in_dim]);
        if has_bias {
            self.add(format!("{name}.bias"), &[out_dim]);
        }
    }

    /// A layer norm: `weight` and `bias`.
    fn layer_norm(&mut self, name: &str, width: i64) {
        self.add(format!("{name}.weight"), &[width]);
        self.add(format!("{name}.bias"), &[width]);
    }
}

impl LmConfig {
    /// The tensors of the language model. Tied output embeddings have no entry of their own.
    pub fn tensors(&self) -> Vec<TensorShape> {
        let names = self.names();
        let table = [self.vocab_size, self.dim];
        let mut list = List(Vec::new());
        list.add(LmNames::weight(names.embeddings), &table);
        for index in 0..self.n_layers {
            self.add_block(&mut list, &format!("{}.{index}", names.layers));
        }
        list.add(LmNames::weight(names.norm), &[self.dim]);
        if !self.tie_word_embeddings {
            list.add(LmNames::weight(names.output), &table);
        }
        list.0
    }

    fn add_block(&self, list: &mut List, block: &str) {
        let (names, dim) = (self.names(), self.dim);
        let attention = format!("{block}.{}", names.attention);
        let (query_dim, kv_dim) = (self.query_dim(), self.kv_dim());
        for (name, width) in [(names.query, query_dim), (names.key, kv_dim), (names.value, kv_dim)]
        {
            list.linear(&format!("{attention}.{name}"), dim, width, self.qkv_bias);
        }
        let output = format!("{attention}.{}", names.attention_output);
        list.linear(&output, query_dim, dim, self.attention_output_bias);
        if self.qk_norm {
            for norm in [names.query_norm, names.key_norm] {
                list.add(format!("{attention}.{norm}.weight"), &[self.head_dim()]);
            }
        }
        self.add_feed_forward(list, &format!("{block}.{}", names.feed_forward));
        for norm in [names.attention_norm, names.ffn_norm] {
            list.add(format!("{block}.{norm}.weight"), &[dim]);
        }
    }

    fn add_feed_forward(&self, list: &mut List, scope: &str) {
        let names = self.names();
        if !self.use_moe {
            return self.add_swiglu(list, scope);
        }
        for expert in 0..self.moe.n_routed_experts {
            self.add_swiglu(list, &format!("{scope}.{}.{expert}", names.experts));
        }
        list.linear(
            &format!("{scope}.{}", names.router),
            self.dim,
            self.moe.n_routed_experts,
            false,
        );
        for expert in 0..self.num_shared_experts() {
            let shared = format!("{scope}.{}", names.shared_experts);
            match names.numbers_shared_experts {
                true => self.add_swiglu(list, &format!("{shared}.{expert}")),
                false => self.add_swiglu(list, &shared),
            }
        }
    }

    fn add_swiglu(&self, list: &mut List, scope: &str) {
        let (names, dim, width) = (self.names(), self.dim, self.intermediate_size());
        list.linear(&format!("{scope}.{}", names.gate), dim, width, self.mlp_bias);
        list.linear(&format!("{scope}.{}", names.down), width, dim, self.mlp_bias);
        list.linear(&format!("{scope}.{}", names.up), dim, width, self.mlp_bias);
    }
}

impl ProjectorConfig {
    /// The tensors of a projector from the patch features of `vision` to `hidden_size`.
    pub fn tensors(&self, vision: &VisionConfig, hidden_size: i64) -> Vec<TensorShape> {
        let width = vision.hidden_size;
        let merged = self.merged_width(vision);
        let mut list = List(Vec::new());
        let mlp = |index: i64| format!("{PROJECTOR_SCOPE}.mlp.{index}");
        match self.kind {
            ProjectorKind::Linear => {
                let name = format!("{PROJECTOR_SCOPE}.{PROJECTOR_SCOPE}.0");
                list.linear(&name, width, hidden_size, true);
            }
            ProjectorKind::Mlp => {
                list.layer_norm(&mlp(0), width);
                list.linear(&mlp(1), width, hidden_size, true);
                list.linear(&mlp(3), hidden_size, hidden_size, true);
            }
            ProjectorKind::MergedMlp => {
                list.linear(&mlp(0), merged, hidden_size, true);
                list.linear(&mlp(2), hidden_size, hidden_size, true);
            }
            ProjectorKind::Mlp2xGelu => {
                list.linear(&format!("{PROJECTOR_SCOPE}.linear_1"), width, hidden_size, true);
                list.linear(&format!("{PROJECTOR_SCOPE}.linear_2"), hidden_size, hidden_size, true);
            }
            ProjectorKind::PixelShuffle => {
                list.linear(&format!("{PROJECTOR_SCOPE}.proj"), merged, hidden_size, false);
            }
        }
        list.0
    }
}

impl VisionConfig {
    /// The tensors of the vision encoder that are used. Text tower, pooling head and, for CLIP, the
    /// norm of the pooled output are left out.
    pub fn tensors(&self) -> Vec<TensorShape> {
        let (width, is_clip) = (self.hidden_size, self.family == VisionFamily::Clip);
        let mut list = List(Vec::new());
        let embeddings = "vision_model.embeddings";
        if is_clip {
            list.add(format!("{embeddings}.class_embedding"), &[width]);
        }
        let patch = format!("{embeddings}.patch_embedding");
        let kernel = [width, self.num_channels, self.patch_size, self.patch_size];
        list.add(format!("{patch}.weight"), &kernel);
        if !is_clip {
            list.add(format!("{patch}.bias"), &[width]);
        }
        let positions = format!("{embeddings}.position_embedding.weight");
        list.add(positions, &[self.num_positions(), width]);
        if is_clip {
            list.layer_norm("vision_model.pre_layrnorm", width);
        }
        for index in 0..self.num_hidden_layers {
            let block = format!("vision_model.encoder.layers.{index}");
            for name in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                list.linear(&format!("{block}.self_attn.{name}"), width, width, true);
            }
            list.layer_norm(&format!("{block}.layer_norm1"), width);
            list.linear(&format!("{block}.mlp.fc1"), width, self.intermediate_size, true);
            list.linear(&format!("{block}.mlp.fc2"), self.intermediate_size, width, true);
            list.layer_norm(&format!("{block}.layer_norm2"), width);
        }
        if !is_clip {
            list.layer_norm("vision_model.post_layernorm", width);
        }
        list.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(tensors: &[TensorShape]) -> i64 {
        tensors.iter().map(TensorShape::numel).sum()
    }

    #[test]
    fn language_models_have_the_published_numbers_of_parameters() {
        // MiniMind's README gives 26 M, 104 M, and 145 M with four routed experts and a shared one.
        let small = LmConfig::default();
        assert_eq!((count(&small.tensors()) as f64 / 1e5).round(), 258.0);
        let base = LmConfig { dim: 768, n_layers: 16, ..LmConfig::default() };
        assert_eq!((count(&base.tensors()) as f64 / 1e6).round(), 104.0);
        let moe = LmConfig { dim: 640, use_moe: true, ..LmConfig::default() };
        assert_eq!((count(&moe.tensors()) as f64 / 1e6).round(), 145.0);
    }

    #[test]
    fn vision_encoder_has_the_published_number_of_parameters() {
        // The vision tower of openai/clip-vit-base-patch16 without its last norm (1536 parameters),
        // which is not used.
        assert_eq!(count(&VisionConfig::default().tensors()), 85_799_424 - 1536);
    }
}
