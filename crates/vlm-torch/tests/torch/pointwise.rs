//! RMSNorm and SwiGLU equal tch's operations, in values and gradients.

use tch::{Device, Kind, Tensor};
use vlm_torch::{Result, autocast, rms_norm, swiglu};

use crate::random;

/// Relative to the largest value: sums in another order, and another exponential function, each with
/// an error of about one unit in the last place of float32 (1.2e-7).
const TOLERANCE: f64 = 2e-6;

fn assert_close(a: &Tensor, b: &Tensor) {
    assert_eq!((a.size(), a.kind()), (b.size(), b.kind()));
    let largest = |x: Tensor| f64::try_from(x.to_kind(Kind::Double).abs().max()).unwrap();
    let difference = largest(a - b);
    assert!(difference <= TOLERANCE * largest(b.shallow_clone()), "{difference:e}");
}

/// Compares the output of two functions of the same leaves, and the gradients of those that are
/// trained.
fn compare(leaves: &[&Tensor], outputs: [Tensor; 2]) {
    let direction = random(&outputs[0].size());
    assert_close(&outputs[0], &outputs[1]);
    let trained: Vec<&Tensor> =
        leaves.iter().copied().filter(|leaf| leaf.requires_grad()).collect();
    let [ours, theirs] = outputs.map(|output| {
        let loss = (output * &direction).sum(Kind::Float);
        Tensor::run_backward(&[loss], &trained, false, false)
    });
    assert_eq!(ours.len(), trained.len());
    ours.iter().zip(&theirs).for_each(|(a, b)| assert_close(a, b));
}

fn silu_times_up(gate: &Tensor, up: &Tensor) -> Tensor {
    gate.silu() * up
}

#[test]
fn rms_norm_equals_tchs_in_values_and_gradients() {
    tch::manual_seed(5);
    // Widths with and without a rest of vectors of 16; more rows than one thread takes at a time.
    for (shape, trained) in [
        (vec![3, 700, 512], [true, true]),
        (vec![2, 5, 33], [true, true]),
        (vec![40, 7], [true, false]),
        (vec![40, 96], [false, true]),
        (vec![0, 16], [true, true]),
    ] {
        let width = shape[shape.len() - 1];
        let x = random(&shape).set_requires_grad(trained[0]);
        let weight = random(&[width]).set_requires_grad(trained[1]);
        let ours = rms_norm(&x, &weight, 1e-5).unwrap();
        if shape[0] == 0 {
            assert_eq!(ours.size(), shape);
            continue;
        }
        compare(&[&x, &weight], [ours, x.rms_norm([width], Some(&weight), 1e-5)]);
    }
}

#[test]
fn rms_norm_of_a_view_equals_that_of_a_copy() {
    let x = random(&[64, 30]).transpose(0, 1);
    let weight = random(&[64]);
    let norm = |x: &Tensor| rms_norm(x, &weight, 1e-5).unwrap();
    assert_eq!(norm(&x), norm(&x.contiguous()));
}

#[test]
fn swiglu_equals_tchs_in_values_and_gradients() {
    tch::manual_seed(6);
    for (shape, trained) in [
        (vec![2, 300, 176], [true, true]),
        (vec![5, 13], [true, false]),
        (vec![5, 13], [false, true]),
    ] {
        // Up to gates for which the exponential function is 0 or exceeds float32.
        let gate = (random(&shape) * 40).detach().set_requires_grad(trained[0]);
        let up = random(&shape).set_requires_grad(trained[1]);
        let ours = swiglu(&gate, &up).unwrap();
        compare(&[&gate, &up], [ours, silu_times_up(&gate, &up)]);
    }
}

#[test]
fn infinite_and_undefined_values_stay_so() {
    let x = Tensor::from_slice(&[f32::NAN, 1.0, f32::INFINITY, -200.0]);
    let ours = swiglu(&x, &x.ones_like()).unwrap();
    assert_eq!(Vec::<bool>::try_from(ours.isnan()).unwrap(), [true, false, false, false]);
    assert_eq!(f32::try_from(ours.get(2)).unwrap(), f32::INFINITY);
    assert_eq!(f32::try_from(ours.get(3)).unwrap(), 0.0);
    let norm = rms_norm(&x, &x.ones_like(), 1e-5).unwrap();
    assert!(bool::try_from(norm.isnan().all()).unwrap());
}

#[test]
fn sixteen_bits_are_tchs_own_operations() {
    let [gate, up] = [random(&[6, 40]), random(&[6, 40])].map(|x| x.to_kind(Kind::BFloat16));
    let compute = || -> Result<Tensor> { swiglu(&gate, &up) };
    let ours = autocast(Device::Cpu, Some(Kind::BFloat16), compute).unwrap().unwrap();
    assert_eq!(ours, silu_times_up(&gate, &up));
    assert_eq!(ours.kind(), Kind::BFloat16);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (x, weight) = (random(&[900, 64]), random(&[64]).set_requires_grad(true));
    let gradient = || {
        let loss = (rms_norm(&x, &weight, 1e-5).unwrap() * &x).sum(Kind::Float);
        Tensor::run_backward(&[loss], &[&weight], false, false).remove(0)
    };
    let threads = tch::get_num_threads();
    let several = gradient();
    tch::set_num_threads(1);
    let one = gradient();
    tch::set_num_threads(threads);
    assert_eq!(several, one);
}

#[test]
fn shapes_that_do_not_agree_are_an_error() {
    assert!(rms_norm(&random(&[4, 8]), &random(&[9]), 1e-5).is_err());
    assert!(swiglu(&random(&[4, 8]), &random(&[4, 9])).is_err());
}
