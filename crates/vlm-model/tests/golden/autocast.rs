//! Low precision, compared with PyTorch's own autocast (`tests/golden/autocast.py`). Rounding
//! depends on the order of operations, so the tests compare the sizes of the rounding errors of
//! loss and gradients.

use tch::{Device, IndexOp, Kind, Tensor};
use vlm_torch::autocast;

use crate::fixtures::{json, model, rows, tensors};

/// The loss scale of `autocast.py`.
const FLOAT16_LOSS_SCALE: f64 = 1024.0;

fn norm(tensor: &Tensor) -> f64 {
    f64::try_from(tensor.norm()).unwrap()
}

/// The loss, and the distance of each gradient from the one in `exact`, relative to its norm.
fn step(folder: &str, kind: Kind, exact: &str) -> (f64, Vec<(String, f64)>) {
    let inputs = tensors(&format!("{folder}/inputs.safetensors"));
    let [x, y, mask, images] = ["X", "Y", "loss_mask", "image_index"].map(|name| inputs[name].i(0));
    let (model, rows) = (model(folder), rows(&x, &y, &mask, &images));
    let low = || model.loss(&rows.batch, &rows.supervised, &rows.targets, true).unwrap();
    let loss = autocast(Device::Cpu, Some(kind), low).unwrap();
    assert_eq!(loss.sum.kind(), Kind::Float, "the loss itself is in float32");
    let mut mean = loss.sum / loss.num_supervised as f64;
    if let Some(aux_loss) = loss.aux_loss {
        mean += aux_loss;
    }
    let scale = if kind == Kind::Half { FLOAT16_LOSS_SCALE } else { 1.0 };
    (&mean * scale).backward();
    let exact = tensors(&format!("{folder}/{exact}"));
    let distance = |(name, tensor): (String, Tensor)| {
        assert_eq!(tensor.grad().kind(), Kind::Float, "{name}: gradients are in float32");
        let distance = norm(&(tensor.grad() / scale - &exact[&name])) / norm(&exact[&name]);
        (name, distance)
    };
    let distances = model.trainable().into_iter().map(distance).collect();
    (f64::try_from(mean).unwrap(), distances)
}

fn assert_rounding(kind: Kind, name: &str, loss_tolerance: f64) {
    let golden = json("autocast.json");
    for (folder, exact) in [("dense", "grads.safetensors"), ("moe", "grads_f32.safetensors")] {
        let exact_loss = golden[folder]["loss"].as_f64().unwrap();
        let theirs = &golden[folder][name];
        let (loss, distances) = step(folder, kind, exact);
        let (ours, python) = (loss - exact_loss, theirs["loss"].as_f64().unwrap() - exact_loss);
        println!("{folder} {name}: loss {ours:+.1e} from float32, PyTorch's {python:+.1e}");
        assert!(ours.abs() <= loss_tolerance * exact_loss, "{folder}: loss off by {ours:e}");
        for (tensor, ours) in distances {
            let python = theirs["gradients"][&tensor].as_f64().unwrap();
            println!("{folder} {name} {tensor}: {ours:.4}, PyTorch's {python:.4}");
            assert!(
                (python / 4.0..=python * 1.5).contains(&ours),
                "{folder} {name} {tensor}: gradient {ours:.4} of its norm from float32, PyTorch's \
                 {python:.4}"
            );
        }
    }
}

#[test]
fn bfloat16_rounds_as_much_as_pytorchs_autocast() {
    assert_rounding(Kind::BFloat16, "bfloat16", 2e-3);
}

#[test]
fn float16_rounds_as_much_as_pytorchs_autocast() {
    assert_rounding(Kind::Half, "float16", 2.5e-4);
}
