//! A hash of tensors, to compare them bit for bit.

use tch::Tensor;

use crate::TrainError;

/// BLAKE3 over names and values, in hexadecimal.
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
