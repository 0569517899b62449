//! Weight files: what is written is read again bit for bit, what strangers send is refused in words.

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

/// Name and tensor pairs.
fn named(tensors: Vec<(&str, Tensor)>) -> Vec<(String, Tensor)> {
    tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

/// What opening the file complains of.
fn refusal(path: &Path) -> String {
    match Weights::open(path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(error) => error.to_string(),
    }
}
