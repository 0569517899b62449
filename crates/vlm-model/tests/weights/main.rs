//! Weights files: tensors are read back bit by bit as they were written, and malicious or damaged
//! files are refused with the reason.

mod forge;
mod forms;
mod load;
mod malicious;
mod round_trip;

use std::path::{Path, PathBuf};

use tch::Tensor;
use vlm_model::weights::Weights;

/// A file under `tests/golden`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// Pairs of name and tensor.
fn named(tensors: Vec<(&str, Tensor)>) -> Vec<(String, Tensor)> {
    tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

/// The error of opening the file.
fn refusal(path: &Path) -> String {
    match Weights::open(path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(error) => error.to_string(),
    }
}
