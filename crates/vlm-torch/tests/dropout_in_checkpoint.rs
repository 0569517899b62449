//! Random numbers in a checkpointed function. In a process of its own: the generator is the
//! process's, and other tests draw from it.

use tch::{Device, Kind, Tensor};
use vlm_torch::checkpoint;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn dropout_drops_the_same_again_and_later_draws_are_not_disturbed() {
    let x = random(&[3, 4]).set_requires_grad(true);
    let run = |checkpointed: bool| {
        tch::manual_seed(3);
        let block = |inputs: &[Tensor]| inputs[0].gelu("none").dropout(0.5, true);
        let output = if checkpointed {
            checkpoint(&[&x], &[], block).unwrap()
        } else {
            block(&[x.shallow_clone()])
        };
        // Draws between the passes, and after them.
        let loss = (output * random(&[4])).square().sum(Kind::Float);
        [Tensor::run_backward(&[loss], &[&x], false, false).remove(0), random(&[4])]
    };
    let (plain, again) = (run(false), run(true));
    assert!(plain[0].equal(&again[0]), "another dropout in the second run");
    assert!(plain[1].equal(&again[1]), "the second run took numbers from what came after");
}
