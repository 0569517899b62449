//! The memory of a rank by part, and the size of a checkpoint.

use super::cost::{Load, num_trained};
use vlm_shapes::FreezePolicy;

use super::shape::{Shape, Tensor};

const F32: u64 = 4;

/// Memory of one rank in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights in float32, with those of the vision encoder, and their bfloat16 copies during a
    /// step.
    pub weights: u64,
    /// Gradients of the trained parameters.
    pub gradients: u64,
    /// The two moments of AdamW.
    pub optimizer: u64,
    /// Tensors that are kept for the backward pass, and the logits.
    pub activations: u64,
}

impl Memory {
    /// The memory that a rank needs.
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

    /// Total memory in bytes.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }
}

/// Bytes of the activations that are kept for the backward pass. A block keeps the inputs of its
/// two norms (float32), queries, keys, values, the output of attention, and three feed-forward
/// tensors; a trained block also keeps the inputs of its matrix products.
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
    // The logits, their log-softmax, and its gradient.
    let logits = load.batch_size * load.supervised * lm.vocab_size.unsigned_abs() * 3 * F32;
    let vision = &shape.vision;
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

/// Sizes of the files of a checkpoint in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSize {
    /// `model.safetensors`.
    pub model: u64,
    /// `optimizer.safetensors`.
    pub optimizer: u64,
}

impl CheckpointSize {
    /// The exact sizes for a frozen vision encoder.
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
        // The metadata entry for the two names of a tied tensor: JSON within JSON.
        let note = tied.as_ref().map_or(String::new(), |(output, input)| {
            format!(r#","vlm.tied":"{{\"{output}\":\"{input}\"}}""#)
        });
        Self {
            model: safetensors_bytes(&model, &note),
            optimizer: safetensors_bytes(&optimizer, ""),
        }
    }

    /// Size of both files. `state.json`, of about two kilobytes, is not counted.
    pub fn total(&self) -> u64 {
        self.model + self.optimizer
    }
}

/// Size of a `.safetensors` file of float32 tensors in bytes: the length of the header, the header
/// (with `note` in its metadata, padded to a multiple of eight), and the data.
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
    fn file_size_equals_that_of_the_safetensors_library() {
        // len(safetensors.numpy.save({"a": zeros((2, 3), float32), "b": zeros((), float32)},
        // metadata={"format": "pt"}))
        let tensors = [("a".to_owned(), &[2, 3][..]), ("b".to_owned(), &[][..])];
        assert_eq!(safetensors_bytes(&tensors, ""), GOLDEN);
    }

    const GOLDEN: u64 = 180;
}
