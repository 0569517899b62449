//! A hash of tensors, for bitwise comparison.

use tch::Tensor;

use crate::TrainError;

/// BLAKE3 of the names and values of tensors, in hexadecimal.
///
/// # Errors
/// A tensor whose bytes cannot be read.
pub(crate) fn hash_of_tensors(named: &[(String, Tensor)]) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    for (name, tensor) in named {
        hasher.update(name.as_bytes());
        hasher.update(&vlm_torch::tensor_to_bytes(&tensor.detach())?);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
