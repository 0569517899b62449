//! Memory of one rank by part, and the size of what a checkpoint holds.

use super::cost::{Load, num_trained};
use vlm_shapes::FreezePolicy;

use super::shape::{Shape, Tensor};

const F32: u64 = 4;

/// Bytes on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights in float32, the vision encoder's included, and their bfloat16 copies of one step.
    pub weights: u64,
    /// Gradients, which are also what the network carries.
    pub gradients: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// What the backward pass needs of the forward pass, and the logits.
    pub activations: u64,
}

impl Memory {
    /// Counts it.
    pub fn count(shape: &Shape, freeze: &FreezePolicy, load: &Load, tensors: &[Tensor]) -> Self {
        let lm: u64 = tensors.iter().map(Tensor::numel).sum();
        let vision = if load.features_are_cached { 0 } else { shape.num_vision_parameters() };
        let half = if load.is_bfloat16 { 2 } else { 0 };
        let num_trained = num_trained(shape, freeze, tensors);
        Self {
            weights: (lm + vision) * (F32 + half),
            gradients: num_trained * F32,
            optimizer: 2 * num_trained * F32,
            activations: activations(shape, freeze, load),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }
}

/// A block keeps the inputs of its two norms (float32), queries, keys, values and what attention
/// made of them, and three feed-forward tensors; a trained one the inputs of its products too.
fn activations(shape: &Shape, freeze: &FreezePolicy, load: &Load) -> u64 {
    let half = if load.is_bfloat16 { 2 } else { F32 };
    let lm = &shape.lm;
    let (dim, width) = (lm.dim.unsigned_abs(), lm.intermediate_size().unsigned_abs());
    let (query_dim, kv_dim) = (lm.query_dim().unsigned_abs(), lm.kv_dim().unsigned_abs());
    let ffs = shape.feed_forwards_per_token();
    let position = 2 * dim * F32 + (2 * query_dim + 2 * kv_dim + ffs * 3 * width) * half;
    let inputs = (2 * dim + ffs * width) * half;
    let blocks: u64 = (0..lm.n_layers)
        .map(|index| position + if freeze.trains_block(lm, index) { inputs } else { 0 })
        .sum();
    let positions = load.batch_size * load.seq_len;
    // Logits, their log-softmax and its gradient.
    let logits = load.batch_size * load.supervised * lm.vocab_size.unsigned_abs() * 3 * F32;
    let vision = &shape.vision;
    let tokens = load.batch_size * load.images * vision.num_positions().unsigned_abs();
    let inner = vision.intermediate_size.unsigned_abs();
    let vision_block = tokens * (6 * vision.hidden_size.unsigned_abs() * F32 + 3 * inner * half);
    let kept = match (load.features_are_cached, freeze.train_vision) {
        (true, _) => 0,
        // Without gradients one block at a time is enough, and is gone before the language model.
        (false, false) => 0,
        (false, true) => vision.num_hidden_layers.unsigned_abs() * vision_block,
    };
    let passing = if load.features_are_cached { 0 } else { vision_block };
    (positions * blocks + logits + kept).max(passing)
}

/// Bytes of the files of one checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSize {
    /// `model.safetensors`.
    pub model: u64,
    /// `optimizer.safetensors`.
    pub optimizer: u64,
}

impl CheckpointSize {
    /// To the byte, for a frozen vision encoder.
    pub fn count(shape: &Shape, tensors: &[Tensor]) -> Self {
        let mut model: Vec<(String, &[u64])> =
            tensors.iter().map(|t| (t.name.clone(), &t.shape[..])).collect();
        let tied = shape.tied_names();
        if let Some((output, input)) = &tied {
            let table = tensors.iter().find(|tensor| tensor.name == *input);
            model.extend(table.map(|table| (output.clone(), &table.shape[..])));
        }
        let optimizer: Vec<(String, &[u64])> = tensors
            .iter()
            .filter(|t| t.is_trained)
            .flat_map(|t| {
                [
                    (format!("exp_avg/{}", t.name), &t.shape[..]),
                    (format!("exp_avg_sq/{}", t.name), &t.shape[..]),
                    (format!("step/{}", t.name), &[]),
                ]
            })
            .collect();
        // The note that the two names are one tensor, JSON within JSON.
        let note = tied.as_ref().map_or(String::new(), |(output, input)| {
            format!(r#","vlm.tied":"{{\"{output}\":\"{input}\"}}""#)
        });
        Self {
            model: safetensors_bytes(&model, &note),
            optimizer: safetensors_bytes(&optimizer, ""),
        }
    }

    /// Both files; `state.json` beside them is two kilobytes.
    pub fn total(&self) -> u64 {
        self.model + self.optimizer
    }
}

/// Size of a `.safetensors` file of float32 tensors: the header's length, the header with `note` in
/// its metadata padded to a multiple of eight, the data.
fn safetensors_bytes(tensors: &[(String, &[u64])], note: &str) -> u64 {
    let mut header = format!("{{\"__metadata__\":{{\"format\":\"pt\"{note}}}");
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<u64>() * F32;
        let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
        let shape = shape.join(",");
        header += &format!(
            ",\"{name}\":{{\"dtype\":\"F32\",\"shape\":[{shape}],\"data_offsets\":[{start},{end}]}}"
        );
    }
    8 + (header.len() as u64 + 1).next_multiple_of(8) + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_size_is_that_of_the_safetensors_library() {
        // len(safetensors.numpy.save({"a": zeros((2, 3), float32), "b": zeros((), float32)},
        // metadata={"format": "pt"}))
        let tensors = [("a".to_owned(), &[2, 3][..]), ("b".to_owned(), &[][..])];
        assert_eq!(safetensors_bytes(&tensors, ""), GOLDEN);
    }

    const GOLDEN: u64 = 180;
}
