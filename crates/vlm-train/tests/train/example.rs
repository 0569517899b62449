//! Runs the example of this crate.

use std::path::Path;
use std::sync::mpsc::channel;

#[allow(dead_code)]
#[path = "../../examples/train_tiny.rs"]
mod train_tiny;

#[test]
fn the_example_learns_to_name_colours() {
    let start = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/demo-start");
    let folder = tempfile::tempdir().unwrap();
    let (sender, losses) = channel();
    train_tiny::train_tiny(folder.path(), &start, move |loss| sender.send(loss).unwrap()).unwrap();
    let losses: Vec<f64> = losses.iter().collect();
    assert_eq!(losses.len(), 30, "30 epochs of one batch");
    let (first, last) = (losses[0], losses[29]);
    assert!(last < first / 2.0, "the loss only fell from {first} to {last}");
    assert!(folder.path().join("out/pretrain_vlm_64.safetensors").exists());
}
