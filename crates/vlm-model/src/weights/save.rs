//! Writes weights files.

use std::collections::HashSet;
use std::path::Path;

use tch::Tensor;
use vlm_torch::Heartbeat;

use super::error::{Refusal, WeightsError};
use super::safetensors;

/// Format of a weights file to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A plain dict that `torch.load(path, weights_only=True)` reads. Tied tensors stay tied.
    Pth,
    /// Hugging Face's format. Tied tensors are written once for each name, and the metadata lists
    /// them.
    Safetensors,
}

impl Format {
    /// The format for a file with the name `path`.
    ///
    /// # Errors
    /// The extension is not `.pth`, `.pt`, `.bin` or `.safetensors`.
    pub fn of(path: &Path) -> Result<Self, WeightsError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("pth" | "pt" | "bin") => Ok(Self::Pth),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(Refusal("its name must end in .pth or .safetensors".to_owned()).in_file(path)),
        }
    }
}

/// Writes named tensors to a file atomically (temporary name, fsync, rename).
///
/// # Errors
/// A name occurs twice, the format does not support a dtype, or the file cannot be written.
pub fn save(path: &Path, tensors: &[(String, Tensor)], format: Format) -> Result<(), WeightsError> {
    save_with(path, tensors, format, None)
}

/// As [`save`]; for `heartbeat` see [`vlm_torch::write_atomically_with`].
///
/// # Errors
/// As [`save`].
pub fn save_with(
    path: &Path,
    tensors: &[(String, Tensor)],
    format: Format,
    heartbeat: Option<Heartbeat>,
) -> Result<(), WeightsError> {
    if format == Format::Pth {
        return Ok(vlm_torch::save_pth_with(path, tensors, heartbeat)?);
    }
    let mut seen = HashSet::new();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !seen.insert(name)) {
        return Err(Refusal(format!("the name {name:?} occurs twice among the tensors to save"))
            .in_file(path));
    }
    vlm_torch::write_atomically_with(path, heartbeat, |file| {
        safetensors::write(file, tensors, path)
    })
}
