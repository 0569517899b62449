//! Compares `vlm pretrain` with the training script of the reference on the same files.

use std::fs;

use safetensors::SafeTensors;

use crate::support::{Trial, golden, minimind_tokenizer};

/// JPEG decoders differ by one level in some pixels, which changes a loss by up to 2.4e-3.
const LOSS_TOLERANCE: f64 = 5e-3;

/// Trains with the arguments of a run of the reference, and compares losses and weights.
fn check(run: &str) {
    let tokenizer = minimind_tokenizer();
    let runs: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(golden("e2e/runs.json")).unwrap()).unwrap();
    let expected = &runs["runs"][run];
    let argument = |name: &str| expected["args"][name].as_u64().unwrap().to_string();
    let trial = Trial::new();
    let paths = [
        ("--data-path", golden("e2e/data.jsonl")),
        ("--images-path", golden("e2e/images")),
        ("--lm", golden("e2e/lm_48.pth")),
        ("--tokenizer", tokenizer),
    ];
    let mut args: Vec<String> = paths
        .iter()
        .flat_map(|(flag, path)| [flag.to_string(), path.display().to_string()])
        .collect();
    for (flag, value) in [
        ("--dim", "48"),
        ("--n-layers", "2"),
        ("--n-heads", "8"),
        ("--n-kv-heads", "2"),
        ("--learning-rate", "2e-3"),
        ("--padding", "max"),
        ("--dtype", "float32"),
        ("--batch-size", &argument("batch_size")),
        ("--accumulation-steps", &argument("accumulation_steps")),
        ("--epochs", &argument("epochs")),
    ] {
        args.extend([flag.to_owned(), value.to_owned()]);
    }
    args.push("--no-shuffle".into());
    let ended = trial.pretrain(&args.iter().map(String::as_str).collect::<Vec<_>>());
    ended.assert_success();

    let accumulation = expected["args"]["accumulation_steps"].as_f64().unwrap();
    let golden_losses = expected["losses"].as_array().unwrap();
    let lines = trial.metrics();
    assert_eq!(lines.len(), golden_losses.len());
    let worst = lines.iter().zip(golden_losses).fold(0f64, |worst, (line, golden)| {
        // The reference logs its loss divided by the accumulation steps.
        let difference = line["loss"].as_f64().unwrap() / accumulation - golden.as_f64().unwrap();
        worst.max(difference.abs())
    });
    println!("{run}: largest difference of a loss {worst:.1e} over {} steps", lines.len());
    assert!(worst <= LOSS_TOLERANCE, "{run}: a loss differs by {worst:e}");
    let saved = fs::read(trial.path("out/pretrain_vlm_48.safetensors")).unwrap();
    let reference = fs::read(golden(&format!("e2e/final_{run}.safetensors"))).unwrap();
    let largest = parameter_difference(&saved, &reference);
    println!("{run}: largest difference of a trained parameter {largest:.1e}");
    // A step changes a parameter by about the learning rate of 2e-3, and there are a few steps.
    assert!(largest <= 1e-2, "{run}: a parameter differs by {largest:e}");
}

fn parameter_difference(saved: &[u8], reference: &[u8]) -> f32 {
    let saved = SafeTensors::deserialize(saved).unwrap();
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let mut largest = 0f32;
    for (name, tensor) in SafeTensors::deserialize(reference).unwrap().tensors() {
        let ours = floats(saved.tensor(&name).unwrap().data());
        let pairs = ours.iter().zip(floats(tensor.data()));
        largest = pairs.fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
    }
    largest
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn losses_equal_those_of_the_reference_with_batch_size_4() {
    check("acc1_bs4");
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn losses_equal_those_of_the_reference_with_accumulation() {
    check("acc2_bs1");
}

#[test]
fn remaining_gradients_are_applied_at_the_end_of_an_epoch() {
    // An epoch has five micro-batches, an update three. The reference adds the gradients of the
    // last two to the first update of the next epoch, and drops them at the end of the run. Here
    // every epoch has two updates.
    let trial = Trial::new();
    let rows: Vec<String> =
        (0..5).map(|k| crate::support::row(&format!("{k}.png"), "A circle.")).collect();
    trial.write_rows(&rows);
    let ended =
        trial.pretrain(&["--batch-size", "1", "--accumulation-steps", "3", "--epochs", "2"]);
    ended.assert_success();
    let updates: Vec<u64> =
        trial.metrics().iter().map(|line| line["update"].as_u64().unwrap()).collect();
    assert_eq!(updates, [0, 0, 1, 1, 2, 2, 2, 3, 3, 4]);
}
