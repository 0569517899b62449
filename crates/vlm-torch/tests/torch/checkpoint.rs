use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Device, Kind, Tensor};
use vlm_torch::{autocast, checkpoint, checkpoint_many};

use crate::random;

/// A layer whose weight is also used outside of the checkpoint.
struct Layer {
    x: Tensor,
    weight: Tensor,
}

impl Layer {
    fn new() -> Self {
        tch::manual_seed(7);
        Self {
            x: random(&[3, 4]).set_requires_grad(true),
            weight: random(&[4, 4]).set_requires_grad(true),
        }
    }

    fn block(x: &Tensor, weight: &Tensor) -> Tensor {
        x.matmul(weight).gelu("none")
    }

    fn plain(&self) -> Tensor {
        Self::block(&self.x, &self.weight)
    }

    fn checkpointed(&self) -> Tensor {
        let weight = self.weight.shallow_clone();
        checkpoint(&[&self.x], &[&self.weight], move |inputs| Self::block(&inputs[0], &weight))
            .unwrap()
    }

    /// Gradients of a loss that depends on the weight also outside of the block.
    fn gradients(&self, run: impl Fn(&Self) -> Tensor) -> Vec<Tensor> {
        let loss = run(self).matmul(&self.weight).square().sum(Kind::Float);
        Tensor::run_backward(&[loss], &[&self.x, &self.weight], false, false)
    }
}

#[test]
fn gradients_equal_those_without_checkpointing_exactly() {
    let layer = Layer::new();
    let (plain, again) = (layer.gradients(Layer::plain), layer.gradients(Layer::checkpointed));
    assert!(plain.iter().zip(&again).all(|(a, b)| a.equal(b)));
}

#[test]
fn recomputation_has_the_autocast_state_of_the_forward_pass() {
    let layer = Layer::new();
    let bf16 = |run: fn(&Layer) -> Tensor| {
        // The backward pass runs outside of the autocast scope, as PyTorch recommends.
        let loss =
            autocast(Device::Cpu, Some(Kind::BFloat16), || run(&layer).matmul(&layer.weight))
                .unwrap();
        let loss = loss.to_kind(Kind::Float).square().sum(Kind::Float);
        Tensor::run_backward(&[loss], &[&layer.x, &layer.weight], false, false)
    };
    let (plain, again) = (bf16(Layer::plain), bf16(Layer::checkpointed));
    assert!(plain[0].equal(&again[0]));
    // The weight's two bfloat16 gradients are added in float32 with checkpointing, and in bfloat16,
    // which has 8 bits of precision, where the cast weight is shared.
    let scale = f64::try_from(plain[1].abs().max()).unwrap();
    let difference = f64::try_from((&plain[1] - &again[1]).abs().max()).unwrap();
    assert!(difference <= scale / 64.0, "{difference} of {scale}");
    assert!(
        f64::try_from((&layer.gradients(Layer::plain)[0] - &again[0]).abs().max()).unwrap() > 0.0
    );
}

#[test]
fn the_function_runs_twice_with_gradients_and_once_without() {
    let layer = Layer::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let run = |layer: &Layer| {
        let (calls, weight) = (Arc::clone(&calls), layer.weight.shallow_clone());
        checkpoint(&[&layer.x], &[&layer.weight], move |inputs| {
            calls.fetch_add(1, Ordering::SeqCst);
            Layer::block(&inputs[0], &weight)
        })
        .unwrap()
    };
    assert!(!tch::no_grad(|| run(&layer)).requires_grad());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    layer.gradients(run);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    assert_eq!(Arc::strong_count(&calls), 1, "the closures are freed with their graphs");
}

#[test]
fn inputs_without_gradients_may_be_integers() {
    let weight = random(&[5, 2]).set_requires_grad(true);
    let ids = Tensor::from_slice(&[4i64, 0, 4]);
    let table = weight.shallow_clone();
    let rows =
        checkpoint(&[&ids], &[&weight], move |inputs| table.index_select(0, &inputs[0])).unwrap();
    rows.sum(Kind::Float).backward();
    assert_eq!(
        Vec::<f64>::try_from(weight.grad().select(1, 0).to_kind(Kind::Double)).unwrap(),
        [1.0, 0.0, 0.0, 0.0, 2.0]
    );
}

#[test]
fn a_panic_in_the_function_is_an_error_in_both_passes() {
    let x = random(&[2]).set_requires_grad(true);
    let error = checkpoint(&[&x], &[], |_| panic!("bad block")).unwrap_err().to_string();
    assert_eq!(error, "checkpoint: the checkpointed function panicked: bad block");

    let calls = AtomicUsize::new(0);
    let output = checkpoint(&[&x], &[], move |inputs| {
        assert_eq!(calls.fetch_add(1, Ordering::SeqCst), 0, "second run");
        &inputs[0] * 2.0
    })
    .unwrap();
    let error = output.sum(Kind::Float).f_backward().unwrap_err().to_string();
    assert!(
        error.contains("the checkpointed function panicked") && error.contains("second run"),
        "{error}"
    );
}

#[test]
fn a_second_backward_pass_is_refused() {
    let x = random(&[2]).set_requires_grad(true);
    let loss = checkpoint(&[&x], &[], |inputs| inputs[0].square()).unwrap().sum(Kind::Float);
    loss.backward();
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("backward through the graph a second time"), "{error}");
}

#[test]
fn the_backward_pass_may_run_on_another_thread() {
    let layer = Layer::new();
    let plain = layer.gradients(Layer::plain);
    let loss = layer.checkpointed().matmul(&layer.weight).square().sum(Kind::Float);
    let wanted = [layer.x.shallow_clone(), layer.weight.shallow_clone()];
    let run = move || Tensor::run_backward(&[loss], &wanted, false, false);
    let again = std::thread::spawn(run).join().unwrap();
    assert!(plain.iter().zip(&again).all(|(a, b)| a.equal(b)));
}

#[test]
fn several_results_have_correct_gradients_also_if_one_is_not_used() {
    let layer = Layer::new();
    let outputs = |x: &Tensor, weight: &Tensor| {
        let first = Layer::block(x, weight);
        let second = first.square().mean(Kind::Float);
        vec![first, second]
    };
    let checkpointed = |layer: &Layer| {
        let weight = layer.weight.shallow_clone();
        let again = move |inputs: &[Tensor]| outputs(&inputs[0], &weight);
        checkpoint_many(&[&layer.x], &[&layer.weight], 2, again).unwrap()
    };
    let gradients =
        |loss: Tensor| Tensor::run_backward(&[loss], &[&layer.x, &layer.weight], false, false);
    let both = |outputs: Vec<Tensor>| outputs[0].sum(Kind::Float) + &outputs[1] * 3.0;
    let second = |outputs: Vec<Tensor>| outputs[1].shallow_clone();
    for loss in [both as fn(Vec<Tensor>) -> Tensor, second] {
        let plain = gradients(loss(outputs(&layer.x, &layer.weight)));
        let again = gradients(loss(checkpointed(&layer)));
        assert!(plain.iter().zip(&again).all(|(a, b)| a.equal(b)));
    }
}
