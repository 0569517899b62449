//! Names and shapes of a model's tensors, as `vlm` has them, without making one.

/// A shape of the language model and its vision encoder; the numbers are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Hidden size.
    pub dim: u64,
    /// Transformer blocks.
    pub n_layers: u64,
    /// Query heads.
    pub n_heads: u64,
    /// Key and value heads.
    pub n_kv_heads: u64,
    /// Rows of the embedding table.
    pub vocab_size: u64,
    /// Width of a feed-forward layer.
    pub intermediate_size: u64,
    /// Mixture of experts.
    pub experts: Option<Experts>,
    /// The vision encoder.
    pub vision: Vision,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts that tokens are routed to.
    pub routed: u64,
    /// Of these, how many a token is sent to.
    pub per_token: u64,
    /// Whether there is one for all tokens.
    pub shared: bool,
}

impl Experts {
    /// MiniMind's: 4 routed, 2 a token, 1 shared.
    pub const MINIMIND: Self = Self { routed: 4, per_token: 2, shared: true };
}

/// A CLIP vision encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vision {
    /// Width.
    pub hidden_size: u64,
    /// Width of its feed-forward layer.
    pub intermediate_size: u64,
    /// Blocks.
    pub num_hidden_layers: u64,
    /// Side of the picture in pixels.
    pub image_size: u64,
    /// Side of a patch in pixels.
    pub patch_size: u64,
}

impl Vision {
    /// ViT-B at 224 pixels.
    pub const fn clip_base(patch_size: u64) -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            image_size: 224,
            patch_size,
        }
    }

    /// Patches of a picture: its tokens in the language model.
    pub fn num_patches(&self) -> u64 {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Elements of all its tensors.
    pub fn num_parameters(&self) -> u64 {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let norm = 2 * width;
        let attention = 4 * (width * width + width);
        let mlp = width * inner + inner + inner * width + width;
        let embeddings = width
            + width * 3 * self.patch_size * self.patch_size
            + (self.num_patches() + 1) * width;
        embeddings + norm + self.num_hidden_layers * (attention + mlp + 2 * norm)
    }
}

/// What is trained beside the projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trained {
    /// First blocks.
    pub first_layers: u64,
    /// Last blocks.
    pub last_layers: u64,
    /// The whole language model.
    pub lm: bool,
    /// The vision encoder.
    pub vision: bool,
}

impl Trained {
    /// Whether block `index` of `n_layers` is.
    pub fn has_block(&self, index: u64, n_layers: u64) -> bool {
        self.lm || index < self.first_layers || index + self.last_layers >= n_layers
    }
}

/// One float32 tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The reference's name.
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

/// LLaMA's rule for the feed-forward width, as MiniMind rounds it.
pub fn intermediate_size(dim: u64) -> u64 {
    (2 * (4 * dim) / 3).next_multiple_of(64)
}

impl Shape {
    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> u64 {
        self.dim / self.n_heads * self.n_kv_heads
    }

    /// Tensors of the language model and the projector, in the order that `vlm` makes them.
    pub fn tensors(&self, trained: Trained) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64], is_trained: bool| {
            tensors.push(Tensor { name, shape: shape.to_vec(), is_trained });
        };
        let dim = self.dim;
        add("tok_embeddings.weight".into(), &[self.vocab_size, dim], trained.lm);
        for index in 0..self.n_layers {
            let is_trained = trained.has_block(index, self.n_layers);
            let mut add = |name: &str, shape: &[u64]| {
                add(format!("layers.{index}.{name}"), shape, is_trained);
            };
            add("attention.wq.weight", &[dim, dim]);
            add("attention.wk.weight", &[self.kv_dim(), dim]);
            add("attention.wv.weight", &[self.kv_dim(), dim]);
            add("attention.wo.weight", &[dim, dim]);
            let mut swiglu = |prefix: String| {
                add(&format!("{prefix}.w1.weight"), &[self.intermediate_size, dim]);
                add(&format!("{prefix}.w2.weight"), &[dim, self.intermediate_size]);
                add(&format!("{prefix}.w3.weight"), &[self.intermediate_size, dim]);
            };
            match self.experts {
                None => swiglu("feed_forward".into()),
                Some(experts) => {
                    (0..experts.routed).for_each(|e| swiglu(format!("feed_forward.experts.{e}")));
                    add("feed_forward.gate.weight", &[experts.routed, dim]);
                    if experts.shared {
                        let prefix = "feed_forward.shared_experts";
                        add(&format!("{prefix}.w1.weight"), &[self.intermediate_size, dim]);
                        add(&format!("{prefix}.w2.weight"), &[dim, self.intermediate_size]);
                        add(&format!("{prefix}.w3.weight"), &[self.intermediate_size, dim]);
                    }
                }
            }
            add("attention_norm.weight", &[dim]);
            add("ffn_norm.weight", &[dim]);
        }
        add("norm.weight".into(), &[dim], trained.lm);
        add("vision_proj.vision_proj.0.weight".into(), &[dim, self.vision.hidden_size], true);
        add("vision_proj.vision_proj.0.bias".into(), &[dim], true);
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn minimind(dim: u64, n_layers: u64, experts: Option<Experts>) -> Shape {
        Shape {
            dim,
            n_layers,
            n_heads: 8,
            n_kv_heads: 2,
            vocab_size: 6400,
            intermediate_size: intermediate_size(dim),
            experts,
            vision: Vision::clip_base(16),
        }
    }

    const PRETRAINING: Trained =
        Trained { first_layers: 0, last_layers: 1, lm: false, vision: false };

    fn count(shape: &Shape, is_wanted: impl Fn(&Tensor) -> bool) -> u64 {
        shape.tensors(PRETRAINING).iter().filter(|t| is_wanted(t)).map(Tensor::numel).sum()
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let small = minimind(512, 8, None);
        // 3.213 M trained in pretraining, as the reference's log says; 25.8 M and 104 M language
        // models, as MiniMind's table says.
        assert_eq!((count(&small, |t| t.is_trained) as f64 / 1e6 * 1e3).round(), 3213.0);
        let lm = |shape: &Shape| count(shape, |t| !t.name.starts_with("vision_proj"));
        assert_eq!((lm(&small) as f64 / 1e5).round(), 258.0);
        assert_eq!((lm(&minimind(768, 16, None)) as f64 / 1e6).round(), 104.0);
        // 145 M: four routed experts and a shared one.
        assert_eq!((lm(&minimind(640, 8, Some(Experts::MINIMIND))) as f64 / 1e6).round(), 145.0);
    }

    #[test]
    fn vision_encoder_has_the_published_size() {
        // openai/clip-vit-base-patch16's vision tower, without its last norm (1536), which is not used.
        assert_eq!(Vision::clip_base(16).num_parameters(), 85_799_424 - 1536);
        assert_eq!(Vision::clip_base(16).num_patches(), 196);
        assert_eq!(Vision::clip_base(32).num_patches(), 49);
    }
}
