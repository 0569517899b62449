//! The size of a checkpoint.

use super::shape::{Shape, Tensor};

const F32: u64 = 4;

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
