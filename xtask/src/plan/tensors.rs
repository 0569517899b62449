//! Names and shapes of a model's tensors, as `vlm` writes them into a checkpoint, without making one.

use super::Projector;
use super::shape::{Naming, Shape, Trained};

/// One float32 tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The name in its family's weight files.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Whether it is trained.
    pub is_trained: bool,
}

impl Tensor {
    /// Its elements.
    pub fn numel(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// What the tensors of one form of language model are called.
struct Names {
    embeddings: &'static str,
    output: &'static str,
    norm: &'static str,
    layers: &'static str,
    attention: &'static str,
    /// Queries, keys, values, output.
    products: [&'static str; 4],
    feed_forward: &'static str,
    /// Gate, down, up.
    swiglu: [&'static str; 3],
    /// Before attention, before the feed-forward layer.
    norms: [&'static str; 2],
}

const MINIMIND: Names = Names {
    embeddings: "tok_embeddings.weight",
    output: "output.weight",
    norm: "norm.weight",
    layers: "layers",
    attention: "attention",
    products: ["wq", "wk", "wv", "wo"],
    feed_forward: "feed_forward",
    swiglu: ["w1", "w2", "w3"],
    norms: ["attention_norm", "ffn_norm"],
};

const HUGGING_FACE: Names = Names {
    embeddings: "model.embed_tokens.weight",
    output: "lm_head.weight",
    norm: "model.norm.weight",
    layers: "model.layers",
    attention: "self_attn",
    products: ["q_proj", "k_proj", "v_proj", "o_proj"],
    feed_forward: "mlp",
    swiglu: ["gate_proj", "down_proj", "up_proj"],
    norms: ["input_layernorm", "post_attention_layernorm"],
};

impl Names {
    fn of(naming: Naming) -> &'static Self {
        match naming {
            Naming::MiniMind => &MINIMIND,
            Naming::HuggingFace => &HUGGING_FACE,
        }
    }
}

impl Shape {
    /// The two names of the embeddings, where they are one tensor: that of the output, that of the
    /// input.
    pub fn tied_names(&self) -> Option<(&'static str, &'static str)> {
        let names = Names::of(self.naming);
        self.is_tied.then_some((names.output, names.embeddings))
    }

    /// Tensors of the language model and the projector, in the order that `vlm` makes them.
    pub fn tensors(&self, trained: Trained) -> Vec<Tensor> {
        let names = Names::of(self.naming);
        let mut tensors = vec![Tensor {
            name: names.embeddings.to_owned(),
            shape: vec![self.vocab_size, self.dim],
            is_trained: trained.lm,
        }];
        for index in 0..self.n_layers {
            let is_trained = trained.has_block(index, self.n_layers);
            let block = self.block_tensors(names).into_iter().map(|(name, shape)| Tensor {
                name: format!("{}.{index}.{name}", names.layers),
                shape,
                is_trained,
            });
            tensors.extend(block);
        }
        let mut add = |name: &str, shape: Vec<u64>, is_trained: bool| {
            tensors.push(Tensor { name: name.to_owned(), shape, is_trained });
        };
        add(names.norm, vec![self.dim], trained.lm);
        if !self.is_tied {
            add(names.output, vec![self.vocab_size, self.dim], trained.lm);
        }
        for (name, shape) in self.projector_tensors() {
            add(&format!("vision_proj.{name}"), shape, true);
        }
        tensors
    }

    fn block_tensors(&self, names: &Names) -> Vec<(String, Vec<u64>)> {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64]| tensors.push((name, shape.to_vec()));
        let (dim, width) = (self.dim, self.intermediate_size);
        let (query_dim, kv_dim) = (self.query_dim(), self.kv_dim());
        let attention = names.attention;
        let products = [(query_dim, dim), (kv_dim, dim), (kv_dim, dim), (dim, query_dim)];
        for (index, (name, (rows, columns))) in names.products.iter().zip(products).enumerate() {
            add(format!("{attention}.{name}.weight"), &[rows, columns]);
            if self.has_qkv_bias && index < 3 {
                add(format!("{attention}.{name}.bias"), &[rows]);
            }
        }
        if self.qk_norm {
            add(format!("{attention}.q_norm.weight"), &[self.head_dim]);
            add(format!("{attention}.k_norm.weight"), &[self.head_dim]);
        }
        let feed_forward = names.feed_forward;
        let swiglu = |prefix: String| {
            let [gate, down, up] = names.swiglu;
            [
                (format!("{prefix}.{gate}.weight"), vec![width, dim]),
                (format!("{prefix}.{down}.weight"), vec![dim, width]),
                (format!("{prefix}.{up}.weight"), vec![width, dim]),
            ]
        };
        match self.experts {
            None => tensors.extend(swiglu(feed_forward.to_owned())),
            Some(experts) => {
                for expert in 0..experts.routed {
                    tensors.extend(swiglu(format!("{feed_forward}.experts.{expert}")));
                }
                tensors.push((format!("{feed_forward}.gate.weight"), vec![experts.routed, dim]));
                if experts.shared {
                    tensors.extend(swiglu(format!("{feed_forward}.shared_experts")));
                }
            }
        }
        tensors.extend(names.norms.map(|norm| (format!("{norm}.weight"), vec![dim])));
        tensors
    }

    fn projector_tensors(&self) -> Vec<(&'static str, Vec<u64>)> {
        let (dim, width) = (self.dim, self.vision.hidden_size);
        let patches = self.vision.num_patches();
        let merged = width * (patches / self.tokens_per_image().unwrap_or(patches).max(1));
        match self.projector {
            Projector::Linear => {
                vec![("vision_proj.0.weight", vec![dim, width]), ("vision_proj.0.bias", vec![dim])]
            }
            Projector::Mlp => vec![
                ("mlp.0.weight", vec![width]),
                ("mlp.0.bias", vec![width]),
                ("mlp.1.weight", vec![dim, width]),
                ("mlp.1.bias", vec![dim]),
                ("mlp.3.weight", vec![dim, dim]),
                ("mlp.3.bias", vec![dim]),
            ],
            Projector::MergedMlp => vec![
                ("mlp.0.weight", vec![dim, merged]),
                ("mlp.0.bias", vec![dim]),
                ("mlp.2.weight", vec![dim, dim]),
                ("mlp.2.bias", vec![dim]),
            ],
            Projector::PixelShuffle => vec![("proj.weight", vec![dim, merged])],
        }
    }
}
