//! Tests of the crate's public interface, against golden files and with bad data.

mod answer_spans;
mod damaged;
mod example;
mod forms;
mod loader;
mod loader_rejects;
mod minimind3v;
mod nested;
mod preprocess;
mod shards;
mod sources;
mod templates;
mod text_stream;
mod tiny;
mod tokenize;

use std::path::{Path, PathBuf};

/// The folder of golden files called `name`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}
