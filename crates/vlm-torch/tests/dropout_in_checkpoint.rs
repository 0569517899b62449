//! Random numbers in a checkpointed function. This test has a process of its own, because all tests
//! of a process share libtorch's generator.

use tch::{Device, Kind, Tensor};
use vlm_torch::checkpoint;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn the_second_run_has_the_same_dropout_and_does_not_change_later_draws() {
    let x = random(&[3, 4]).set_requires_grad(true);
    let run = |checkpointed: bool| {
        tch::manual_seed(3);
        let block = |inputs: &[Tensor]| inputs[0].gelu("none").dropout(0.5, true);
        let output = if checkpointed {
            checkpoint(&[&x], &[], block).unwrap()
        } else {
            block(&[x.shallow_clone()])
        };
        // Draws random numbers between the passes and after them.
        let loss = (output * random(&[4])).square().sum(Kind::Float);
        [Tensor::run_backward(&[loss], &[&x], false, false).remove(0), random(&[4])]
    };
    let (plain, again) = (run(false), run(true));
    assert!(plain[0].equal(&again[0]), "the second run has another dropout");
    assert!(plain[1].equal(&again[1]), "the second run changed later draws");
}
