//! An estimate of the memory that a training run needs on the device of a rank.

use crate::{FreezePolicy, LmConfig, ProjectorConfig, TensorShape, VisionConfig};

const F32: u64 = 4;

/// The micro-batch of a rank, and how it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLoad {
    /// Number of rows in a micro-batch.
    pub batch_size: u64,
    /// Length of a row in tokens, with image tokens and padding.
    pub seq_len: u64,
    /// Number of supervised tokens in a row; logits are computed only for these.
    pub supervised: u64,
    /// Number of images in a row.
    pub images: u64,
    /// Whether the features of the vision encoder are read from a cache.
    pub features_are_cached: bool,
    /// Whether matrix products are computed in 16 bits; otherwise in float32.
    pub is_half: bool,
    /// Whether a block keeps only its input for the backward pass.
    pub activation_checkpointing: bool,
    /// Number of ranks among which the optimizer's state is divided.
    pub optimizer_shards: u64,
}

/// Memory of one rank in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights in float32, with those of the vision encoder.
    pub weights: u64,
    /// Copies of the weights in 16 bits during a step.
    pub half_weights: u64,
    /// Gradients of the trained parameters.
    pub gradients: u64,
    /// The two moments of AdamW.
    pub optimizer: u64,
    /// Tensors that are kept for the backward pass, and the logits.
    pub activations: u64,
}

impl Memory {
    /// The memory that a rank needs. The activations are estimated, all other parts are exact.
    pub fn estimate(
        lm: &LmConfig,
        vision: &VisionConfig,
        projector: &ProjectorConfig,
        freeze: &FreezePolicy,
        load: &MemoryLoad,
    ) -> Self {
        let sum = |tensors: &[TensorShape]| -> u64 {
            tensors.iter().map(|tensor| tensor.numel().unsigned_abs()).sum()
        };
        let mut of_lm = lm.tensors();
        of_lm.extend(projector.tensors(vision, lm.dim));
        let of_vision = if load.features_are_cached { 0 } else { sum(&vision.tensors()) };
        let num_weights = sum(&of_lm) + of_vision;
        of_lm.retain(|tensor| freeze.trains(lm, &tensor.name));
        let num_trained = sum(&of_lm) + if freeze.train_vision { of_vision } else { 0 };
        Self {
            weights: num_weights * F32,
            half_weights: if load.is_half { num_weights * 2 } else { 0 },
            gradients: num_trained * F32,
            optimizer: (2 * num_trained * F32).div_ceil(load.optimizer_shards.max(1)),
            activations: activations(lm, vision, freeze, load),
        }
    }

    /// Bytes that do not depend on the rows of a micro-batch: weights in float32, gradients and
    /// optimizer.
    pub fn fixed(&self) -> u64 {
        self.weights + self.gradients + self.optimizer
    }

    /// Total memory in bytes.
    pub fn total(&self) -> u64 {
        self.fixed() + self.half_weights + self.activations
    }
}

/// Bytes of the activations that are kept for the backward pass. A block keeps the inputs of its
/// two norms (float32), queries, keys, values, the output of attention, and three feed-forward
/// tensors; a trained block also keeps the inputs of its matrix products.
fn activations(
    lm: &LmConfig,
    vision: &VisionConfig,
    freeze: &FreezePolicy,
    load: &MemoryLoad,
) -> u64 {
    let half = if load.is_half { 2 } else { F32 };
    let (dim, width) = (lm.dim.unsigned_abs(), lm.intermediate_size().unsigned_abs());
    let (query_dim, kv_dim) = (lm.query_dim().unsigned_abs(), lm.kv_dim().unsigned_abs());
    let ffs = lm.feed_forwards_per_token().unsigned_abs();
    let position = 2 * dim * F32 + (2 * query_dim + 2 * kv_dim + ffs * 3 * width) * half;
    let inputs = (2 * dim + ffs * width) * half;
    let of_block = |index| position + if freeze.trains_block(lm, index) { inputs } else { 0 };
    let num_blocks = lm.n_layers.unsigned_abs();
    let blocks: u64 = match load.activation_checkpointing {
        // All inputs, and one block that is computed again.
        true => num_blocks * dim * F32 + position + inputs,
        false => (0..lm.n_layers).map(of_block).sum(),
    };
    let positions = load.batch_size * load.seq_len;
    // The logits, their log-softmax, and its gradient.
    let logits = load.batch_size * load.supervised * lm.vocab_size.unsigned_abs() * 3 * F32;
    let tokens = load.batch_size * load.images * vision.num_positions().unsigned_abs();
    let inner = vision.intermediate_size.unsigned_abs();
    let vision_block = tokens * (6 * vision.hidden_size.unsigned_abs() * F32 + 3 * inner * half);
    let kept = match (load.features_are_cached, freeze.train_vision) {
        (true, _) => 0,
        // Without gradients only one block at a time has activations, and they are freed before
        // the forward pass of the language model.
        (false, false) => 0,
        (false, true) => vision.num_hidden_layers.unsigned_abs() * vision_block,
    };
    let transient = if load.features_are_cached { 0 } else { vision_block };
    (positions * blocks + logits + kept).max(transient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProjectorKind;

    fn memory(change: impl FnOnce(&mut MemoryLoad, &mut FreezePolicy)) -> Memory {
        let (lm, vision) = (LmConfig::default(), VisionConfig::default());
        let projector = ProjectorConfig::new(ProjectorKind::Linear, &vision).unwrap();
        let mut load = MemoryLoad {
            batch_size: 16,
            seq_len: 300,
            supervised: 30,
            images: 1,
            features_are_cached: false,
            is_half: true,
            activation_checkpointing: false,
            optimizer_shards: 1,
        };
        let mut freeze = FreezePolicy::default();
        change(&mut load, &mut freeze);
        Memory::estimate(&lm, &vision, &projector, &freeze, &load)
    }

    #[test]
    fn each_setting_reduces_its_part_of_the_memory_only() {
        let base = memory(|_, freeze| freeze.train_lm = true);
        assert_eq!(base.optimizer, 2 * base.gradients);
        let sharded = memory(|load, freeze| {
            freeze.train_lm = true;
            load.optimizer_shards = 4;
        });
        assert_eq!(sharded, Memory { optimizer: base.optimizer.div_ceil(4), ..base });
        let checkpointed = memory(|load, freeze| {
            freeze.train_lm = true;
            load.activation_checkpointing = true;
        });
        assert!(checkpointed.activations * 3 < base.activations, "{checkpointed:?}");
        assert_eq!(checkpointed.fixed(), base.fixed());
        let cached = memory(|load, freeze| {
            freeze.train_lm = true;
            load.features_are_cached = true;
        });
        assert!(cached.weights < base.weights && cached.gradients == base.gradients);
        assert!(memory(|_, _| {}).gradients < base.gradients / 4);
    }
}
