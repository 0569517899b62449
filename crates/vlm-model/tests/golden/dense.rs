//! The dense model: logits, loss and gradients equal the reference.

use tch::{IndexOp, Kind, Tensor};

use crate::fixtures::{assert_close, golden, max_difference, model, rows, tensors};

fn first_batch() -> crate::fixtures::Rows {
    let inputs = tensors("dense/inputs.safetensors");
    rows(
        &inputs["X"].i(0),
        &inputs["Y"].i(0),
        &inputs["loss_mask"].i(0),
        &inputs["image_index"].i(0),
    )
}

#[test]
fn logits_equal_the_reference() {
    assert!(golden("dense/config.json").exists());
    let (model, rows) = (model("dense"), first_batch());
    let expected = tensors("dense/forward.safetensors");
    let hidden = model.forward(&rows.batch, None, true).unwrap().hidden;
    let logits = model.lm().logits(&hidden);
    assert_close("logits", &logits, &expected["logits"], 1e-4);
}

#[test]
fn loss_equals_the_reference() {
    let (model, rows) = (model("dense"), first_batch());
    let expected = tensors("dense/forward.safetensors");
    let loss = model.loss(&rows.batch, &rows.supervised, &rows.targets, true).unwrap();
    let mean = (loss.sum / loss.num_supervised as f64).view([1]);
    assert_close("loss", &mean, &expected["loss"], 1e-5);
}

#[test]
fn gradients_equal_the_reference() {
    let (model, rows) = (model("dense"), first_batch());
    let loss = model.loss(&rows.batch, &rows.supervised, &rows.targets, true).unwrap();
    (loss.sum / loss.num_supervised as f64).backward();
    let expected = tensors("dense/grads.safetensors");
    let trainable = model.trainable();
    assert_eq!(trainable.len(), expected.len(), "the last block and the projector are trained");
    let mut squares = Tensor::zeros([], (Kind::Double, tch::Device::Cpu));
    for (name, tensor) in &trainable {
        let (found, golden) = (tensor.grad(), &expected[name]);
        let scale = f64::try_from(golden.abs().max()).unwrap();
        let relative = max_difference(&found, golden) / scale;
        assert!(relative <= 1e-4, "{name}: gradient differs by {relative:e} of its largest");
        squares += found.square().sum(Kind::Double);
    }
    let norm = squares.sqrt().to_kind(Kind::Float).view([1]);
    let forward = tensors("dense/forward.safetensors");
    assert_close("gradient norm", &norm, &forward["grad_norm"], 5e-4 * 20.0);
}
