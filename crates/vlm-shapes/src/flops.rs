//! Counts the operations that a training step needs.

use crate::{FreezePolicy, LmConfig, ProjectorConfig, ProjectorKind, VisionConfig};

/// What the operations of a micro-batch depend on besides the model.
#[derive(Debug, Clone, Copy)]
pub struct BatchShape<'a> {
    /// Number of tokens of each row, without padding.
    pub lengths: &'a [usize],
    /// Number of supervised tokens of all rows.
    pub supervised: usize,
    /// Number of images of all rows.
    pub images: usize,
    /// Whether the vision encoder is run; otherwise its features come from a cache.
    pub encodes_images: bool,
}

/// The operations of the matrix products that one micro-batch needs. A product of `[n, a]` and
/// `[a, b]` has `2 n a b` operations.
///
/// Counted are the products of the forward pass of the vision encoder, the projector and the
/// language model, and those of the backward pass that a trained parameter requires: the gradient
/// of the weights of a trained layer, and the gradient of the input of a layer if a trained
/// parameter lies before it. Rows have their own lengths, so padding does not count; a token attends
/// to itself and the tokens before it, and a patch to all patches of its image; logits are counted
/// for supervised tokens alone. Not counted are products that an implementation does besides: on
/// padding, on masked scores, again for activation checkpointing or in a fused backward pass of
/// attention. Nor are norms, activations, embeddings, the softmax and the optimizer, which are no
/// matrix products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepFlops {
    /// Forward pass of the vision encoder.
    pub vision: f64,
    /// Forward pass of the projector and the language model.
    pub lm: f64,
    /// Backward pass.
    pub backward: f64,
}

impl StepFlops {
    /// The operations of a micro-batch of `batch`'s shape; none without a supervised token, because
    /// such a micro-batch is skipped.
    pub fn count(
        lm: &LmConfig,
        vision: &VisionConfig,
        projector: &ProjectorConfig,
        freeze: &FreezePolicy,
        batch: &BatchShape,
    ) -> Self {
        if batch.supervised == 0 {
            return Self { vision: 0.0, lm: 0.0, backward: 0.0 };
        }
        let (images, layers) = (batch.images as f64, lm.n_layers as f64);
        let tokens: f64 = batch.lengths.iter().map(|&length| length as f64).sum();
        // Of n tokens, the i-th attends to i tokens.
        let pairs = |&length: &usize| length as f64 * (length as f64 + 1.0) / 2.0;
        let pairs: f64 = batch.lengths.iter().map(pairs).sum();

        let products = 2.0 * tokens * lm.weights_per_token();
        // The scores, and their product with the values.
        let attention = 4.0 * pairs * lm.query_dim() as f64;
        let logits = 2.0 * batch.supervised as f64 * lm.dim as f64 * lm.vocab_size as f64;
        let [first, second] = projector.products(vision, lm.dim).map(|flops| images * flops);
        let [patches, encoder] = vision.products().map(|flops| images * flops);
        let number = |is_needed: bool| f64::from(u8::from(is_needed));

        // Whether a trained parameter lies before the products of the block.
        let has_images = images > 0.0;
        let mut is_reached = has_images || freeze.train_lm;
        let mut backward = 0.0;
        for index in 0..lm.n_layers {
            let is_trained = freeze.trains_block(lm, index);
            // The norm before the first product of a trained block is trained, too.
            is_reached |= is_trained;
            backward += products * (number(is_trained) + number(is_reached));
            // Both inputs of both products of attention get a gradient.
            backward += 2.0 * attention * number(is_reached);
        }
        backward += logits * (number(freeze.train_lm) + number(is_reached));
        if has_images {
            backward += first + 2.0 * second;
        }
        if has_images && freeze.train_vision && batch.encodes_images {
            // The pixels get no gradient, so the patch embedding has only that of its weights.
            backward += first + patches + 2.0 * encoder;
        }
        Self {
            vision: number(batch.encodes_images) * (patches + encoder),
            lm: layers * (products + attention) + logits + first + second,
            backward,
        }
    }

    /// The operations of the whole step.
    pub fn total(&self) -> f64 {
        self.vision + self.lm + self.backward
    }
}

impl LmConfig {
    /// Number of weights of a block that a token is multiplied with: those of its experts alone.
    fn weights_per_token(&self) -> f64 {
        let (dim, width) = (self.dim as f64, self.intermediate_size() as f64);
        let attention = 2.0 * dim * (self.query_dim() + self.kv_dim()) as f64;
        let (feed_forwards, router) = match self.use_moe {
            true => (
                self.moe.num_experts_per_tok + self.num_shared_experts(),
                self.moe.n_routed_experts,
            ),
            false => (1, 0),
        };
        attention + feed_forwards as f64 * 3.0 * dim * width + router as f64 * dim
    }
}

impl VisionConfig {
    /// Operations of the forward pass for one image: of the patch embedding, and of the blocks.
    fn products(&self) -> [f64; 2] {
        let (width, inner) = (self.hidden_size as f64, self.intermediate_size as f64);
        let tokens = self.num_positions() as f64;
        let pixels = (self.num_channels * self.patch_size * self.patch_size) as f64;
        let patches = 2.0 * self.num_patches() as f64 * width * pixels;
        let block = 2.0 * tokens * (4.0 * width * width + 2.0 * width * inner)
            + 4.0 * tokens * tokens * width;
        [patches, self.num_hidden_layers as f64 * block]
    }
}

impl ProjectorConfig {
    /// Operations of the forward pass for one image: of the first and of the second layer.
    fn products(&self, vision: &VisionConfig, dim: i64) -> [f64; 2] {
        let (tokens, dim) = (self.tokens_per_image as f64, dim as f64);
        let second = match self.kind {
            ProjectorKind::Mlp | ProjectorKind::MergedMlp | ProjectorKind::Mlp2xGelu => dim,
            ProjectorKind::Linear | ProjectorKind::PixelShuffle => 0.0,
        };
        [self.merged_width(vision) as f64, second].map(|width| 2.0 * tokens * width * dim)
    }
}

/// The peak rates of dense matrix products of a GPU, in operations per second, from its data sheet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GpuPeak {
    /// The name of the model, such as `H200`.
    pub name: &'static str,
    /// In bfloat16 or float16, with sums in float32.
    pub half: f64,
    /// In float32, without TensorFloat-32.
    pub float32: f64,
}

impl GpuPeak {
    /// The known GPUs: data sheets of the SXM forms of B200, H200, H100 and A100 (80 GB), of the L40S,
    /// and NVIDIA's white papers on Ada and on Ampere GA102.
    pub const ALL: [Self; 7] = [
        Self { name: "B200", half: 2250e12, float32: 75e12 },
        Self { name: "H200", half: 989e12, float32: 67e12 },
        Self { name: "H100", half: 989e12, float32: 67e12 },
        Self { name: "A100", half: 312e12, float32: 19.5e12 },
        Self { name: "L40S", half: 362e12, float32: 91.6e12 },
        Self { name: "4090", half: 165.2e12, float32: 82.6e12 },
        Self { name: "3090", half: 71e12, float32: 35.6e12 },
    ];

    /// The GPU that the driver calls `device`, for example `NVIDIA H100 80GB HBM3`. `None` for an
    /// unknown one, and for the slower forms of a known one, such as `NVIDIA H100 PCIe`.
    pub fn of_device(device: &str) -> Option<Self> {
        let words = || device.split(|c: char| !c.is_ascii_alphanumeric());
        let is_slower = |word: &str| ["PCIe", "PCIE", "NVL", "Laptop", "D", "MIG"].contains(&word);
        if words().any(is_slower) {
            return None;
        }
        Self::ALL.into_iter().find(|gpu| words().any(|word| word == gpu.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(freeze: &FreezePolicy, batch: &BatchShape) -> StepFlops {
        let (lm, vision) = (LmConfig::default(), VisionConfig::default());
        let projector = ProjectorConfig::default_for(&lm, &vision).unwrap();
        StepFlops::count(&lm, &vision, &projector, freeze, batch)
    }

    const BATCH: BatchShape =
        BatchShape { lengths: &[300; 16], supervised: 4800, images: 16, encodes_images: true };
    const ALL: FreezePolicy = FreezePolicy {
        train_vision: false,
        train_lm: true,
        unfreeze_first_layers: 0,
        unfreeze_last_layers: 0,
    };

    #[test]
    fn vision_encoder_has_the_published_number_of_operations() {
        // ViT-B/16 at 224 pixels has 17.6 G multiply-adds per image (Dosovitskiy et al. 2021; table
        // of DeiT), which are twice as many operations.
        let flops = count(&FreezePolicy::default(), &BATCH).vision / 16.0;
        assert!((flops / 35.1e9 - 1.0).abs() < 0.02, "{flops:e}");
    }

    #[test]
    fn operations_follow_the_six_times_parameters_rule_when_all_is_trained() {
        // Apart from the attention scores: 2 operations forward and 4 backward per weight and token
        // (Kaplan et al. 2020).
        let flops = count(&ALL, &BatchShape { encodes_images: false, ..BATCH });
        let weights = 25_829_888.0 - 17.0 * 512.0;
        let scores = 8.0 * 16.0 * 4.0 * (300.0 * 301.0 / 2.0) * 512.0;
        let projector = 2.0 * 16.0 * 196.0 * 768.0 * 512.0;
        let expected = 6.0 * 4800.0 * weights + 3.0 * scores + 2.0 * projector;
        assert!((flops.total() / expected - 1.0).abs() < 1e-9, "{:e} {expected:e}", flops.total());
    }

    #[test]
    fn operations_equal_those_of_pytorchs_flop_counter() {
        // torch.utils.flop_counter.FlopCounterMode of PyTorch 2.11 with eager attention, on
        // Hugging Face's LlamaForCausalLM(hidden_size=64, intermediate_size=96,
        // num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=100) after
        // Linear(48, 64) after CLIPVisionModel(hidden_size=48, intermediate_size=80,
        // num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8): two rows of 20
        // tokens, logits for all of them. `bmm` are the products of attention.
        let lm = LmConfig {
            dim: 64,
            n_layers: 3,
            n_heads: 4,
            n_kv_heads: 2,
            hidden_dim: Some(96),
            vocab_size: 100,
            ..LmConfig::default()
        };
        let vision = VisionConfig {
            hidden_size: 48,
            intermediate_size: 80,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            image_size: 32,
            patch_size: 8,
            ..VisionConfig::default()
        };
        let projector = ProjectorConfig::default_for(&lm, &vision).unwrap();
        // Trained blocks, whether the encoder is trained, number of images, all operations but
        // those of `bmm`, those of `bmm`.
        let cases = [
            (0, false, 2, 19_050_496.0, 2_065_152.0),
            (0, true, 2, 24_432_640.0, 2_509_056.0),
            (1, false, 2, 21_508_096.0, 2_065_152.0),
            (1, true, 2, 26_890_240.0, 2_509_056.0),
            (3, false, 2, 26_935_296.0, 2_065_152.0),
            (3, true, 2, 32_317_440.0, 2_509_056.0),
            (1, false, 0, 13_312_000.0, 1_024_000.0),
        ];
        for (trained, train_vision, images, other, bmm) in cases {
            let freeze = FreezePolicy {
                train_vision,
                train_lm: trained == 3,
                unfreeze_first_layers: 0,
                unfreeze_last_layers: trained,
            };
            let batch =
                BatchShape { lengths: &[20, 20], supervised: 40, images, encodes_images: true };
            let found = StepFlops::count(&lm, &vision, &projector, &freeze, &batch).total();
            // The encoder's attention; and of the language model's 20 · 20 scores 20 · 21 / 2 are
            // not masked.
            let of_vision = f64::from(u8::from(images > 0))
                * if train_vision { 3.0 } else { 1.0 }
                * (2 * 2 * 4 * 17 * 17 * 48) as f64;
            let expected = other + of_vision + (bmm - of_vision) * 210.0 / 400.0;
            assert_eq!(found, expected, "{trained} {train_vision} {images}");
        }
    }

    #[test]
    fn gradients_are_counted_only_where_a_trained_parameter_needs_them() {
        let only_projector = FreezePolicy { unfreeze_last_layers: 0, ..FreezePolicy::default() };
        let text = BatchShape { images: 0, ..BATCH };
        // A text row gives the projector no gradient, so there is no backward pass.
        assert_eq!(count(&only_projector, &text).backward, 0.0);
        assert!(count(&only_projector, &BATCH).backward > 0.0);
        // A text row reaches only the last block and the logits.
        let lm = LmConfig::default();
        let logits = 2.0 * 4800.0 * 512.0 * 6400.0;
        let attention = 16.0 * 4.0 * (300.0 * 301.0 / 2.0) * 512.0;
        let block = 2.0 * 4800.0 * lm.weights_per_token();
        let last = count(&FreezePolicy::default(), &text).backward;
        assert_eq!(last, 2.0 * block + 2.0 * attention + logits);
        // The encoder adds its gradients only if it is trained.
        let trains_vision = FreezePolicy { train_vision: true, ..FreezePolicy::default() };
        let (with, without) =
            (count(&trains_vision, &BATCH), count(&FreezePolicy::default(), &BATCH));
        assert!(with.backward - without.backward > 1.9 * with.vision);
        assert_eq!(count(&ALL, &BatchShape { supervised: 0, ..BATCH }).total(), 0.0);
    }

    #[test]
    fn gpus_are_found_by_the_names_of_the_driver_and_slower_forms_are_not() {
        let name = |device| GpuPeak::of_device(device).map(|gpu| gpu.name);
        assert_eq!(name("NVIDIA H200"), Some("H200"));
        assert_eq!(name("NVIDIA H100 80GB HBM3"), Some("H100"));
        assert_eq!(name("NVIDIA A100-SXM4-80GB"), Some("A100"));
        assert_eq!(name("NVIDIA GeForce RTX 4090"), Some("4090"));
        for unknown in ["NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla T4"] {
            assert_eq!(name(unknown), None, "{unknown}");
        }
    }
}
