//! For tests only: in training, the reference casts the outputs of its experts, and so their
//! gradients, to float16. With the same cast our experts give the reference's numbers, which shows
//! that the cast is the only difference.

use std::cell::Cell;
use std::collections::HashMap;

use tch::{IndexOp, Kind, Tensor};

use fixtures::{Rows, max_difference, model, rows, tensors};

#[allow(dead_code, reason = "the golden tests use the other helpers")]
#[path = "../tests/golden/fixtures.rs"]
mod fixtures;

thread_local! {
    static CASTS: Cell<bool> = const { Cell::new(false) };
}

/// The experts' outputs, rounded to float16 if the running test has set `CASTS`.
pub(crate) fn cast(outputs: Tensor) -> Tensor {
    if CASTS.get() { outputs.to_kind(Kind::Half).to_kind(Kind::Float) } else { outputs }
}

/// The largest differences of logits, losses and gradients from the unchanged reference. Those of
/// gradients are relative to the largest element of each tensor.
struct Distance {
    logits: f64,
    cross_entropy: f64,
    aux_loss: f64,
    gradients: f64,
}

fn first_batch() -> Rows {
    let inputs = tensors("moe/inputs.safetensors");
    let of = |name: &str| inputs[name].i(0);
    rows(&of("X"), &of("Y"), &of("loss_mask"), &of("image_index"))
}

fn distance(casts: bool) -> Distance {
    CASTS.set(casts);
    let (model, rows) = (model("moe"), first_batch());
    let expected = tensors("moe/forward_asis_f16.safetensors");
    let sampled = tensors("moe/steps_sampled_asis_f16.safetensors");
    let hidden = model.forward(&rows.batch, None, true).unwrap().hidden;
    let at = hidden.index_select(1, &expected["logit_positions"]);
    let logits = max_difference(&model.lm().logits(&at), &expected["logits_at"]);
    let loss = model.loss(&rows.batch, &rows.supervised, &rows.targets, true).unwrap();
    let mean = (loss.sum / loss.num_supervised as f64).view([1]);
    let aux_loss = loss.aux_loss.unwrap().view([1]);
    (&mean + &aux_loss).sum(Kind::Float).backward();
    CASTS.set(false);
    Distance {
        logits,
        cross_entropy: max_difference(&mean, &expected["ce"]),
        aux_loss: max_difference(&aux_loss, &expected["aux_loss"]),
        gradients: gradient_distance(&model.trainable(), &expected, &sampled),
    }
}

fn gradient_distance(
    trainable: &[(String, Tensor)],
    expected: &HashMap<String, Tensor>,
    sampled: &HashMap<String, Tensor>,
) -> f64 {
    assert_eq!(trainable.len(), 24);
    let of_one = |(name, tensor): &(String, Tensor)| {
        let gradient = tensor.grad();
        let found = gradient.flatten(0, -1).index_select(0, &sampled[&format!("index/{name}")]);
        let difference = max_difference(&found, &expected[&format!("grad_sampled/{name}")]);
        difference / f64::try_from(gradient.abs().max()).unwrap()
    };
    trainable.iter().map(of_one).fold(0.0, f64::max)
}

#[test]
fn experts_with_the_references_float16_cast_equal_the_reference() {
    let Distance { logits, cross_entropy, aux_loss, gradients } = distance(true);
    println!("with the cast: {logits:.1e}, {cross_entropy:.1e}, {aux_loss:.1e}, {gradients:.1e}");
    // Rounding sometimes turns a difference in the last bit of float32 into one of float16.
    assert!(logits <= 3e-4 && cross_entropy <= 1e-5 && aux_loss <= 1e-5 && gradients <= 1.5e-4);
    // Without the cast they differ.
    let Distance { logits, gradients, .. } = distance(false);
    println!("without the cast: {logits:.1e}, gradients {gradients:.1e}");
    assert!(logits > 6e-4 && gradients > 3e-4);
}
