//! RMSNorm, SwiGLU, sums and QuickGELU equal tch's operations, in values and gradients.

use tch::{Device, Kind, Tensor};
use vlm_torch::{
    Result, autocast, gelu_tanh, has_row_attention, mixed_sum, quick_gelu, rms_norm, swiglu,
};

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
        let ours = rms_norm(&x, &weight, 1e-5, Kind::Float).unwrap();
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
    let norm = |x: &Tensor| rms_norm(x, &weight, 1e-5, Kind::Float).unwrap();
    assert_close(&norm(&x), &norm(&x.contiguous()));
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
    let norm = rms_norm(&x, &x.ones_like(), 1e-5, Kind::Float).unwrap();
    assert!(bool::try_from(norm.isnan().all()).unwrap());
}

/// The output of a function of `leaves`, and their gradients.
fn with_gradients(leaves: &[Tensor], output: Tensor, direction: &Tensor) -> Vec<Tensor> {
    let direction = direction.to_kind(output.kind());
    let loss = (&output * direction).sum(Kind::Float);
    let mut all = Tensor::run_backward(&[loss], leaves, false, false);
    all.push(output.detach());
    all
}

/// Copies of `tensors` in the type `kind` that require gradients.
fn leaves(tensors: &[Tensor], kind: Kind) -> Vec<Tensor> {
    tensors.iter().map(|x| x.detach().to_kind(kind).set_requires_grad(true)).collect()
}

/// A computation in bfloat16 is one in float32 whose results are rounded once.
#[test]
fn sixteen_bits_are_float32_with_rounded_results() {
    if !has_row_attention(16) {
        return;
    }
    tch::manual_seed(7);
    let sixteen = |x: Tensor| x.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    for shape in [vec![300, 176], vec![5, 13]] {
        let inputs = [(); 2].map(|()| sixteen(random(&shape) * 4));
        let direction = sixteen(random(&shape));
        let [wide, narrow] = [Kind::Float, Kind::BFloat16].map(|kind| {
            let leaves = leaves(&inputs, kind);
            let output = swiglu(&leaves[0], &leaves[1]).unwrap();
            assert_eq!(output.kind(), kind);
            with_gradients(&leaves, output, &direction)
        });
        for (wide, narrow) in wide.iter().zip(&narrow) {
            assert_eq!(&wide.to_kind(Kind::BFloat16), narrow);
        }
        let weight = random(&shape[1..]);
        let [wide, narrow] = [Kind::Float, Kind::BFloat16].map(|kind| {
            let leaves = leaves(&[inputs[0].shallow_clone(), weight.shallow_clone()], Kind::Float);
            let output = rms_norm(&leaves[0], &leaves[1], 1e-5, kind).unwrap();
            assert_eq!(output.kind(), kind);
            with_gradients(&leaves, output, &direction)
        });
        assert_eq!(wide[..2], narrow[..2]);
        assert_eq!(wide[2].to_kind(Kind::BFloat16), narrow[2]);
        for activation in [quick_gelu, gelu_tanh] {
            let wide = activation(inputs[0].copy()).unwrap();
            let narrow = activation(inputs[0].to_kind(Kind::BFloat16)).unwrap();
            assert_eq!(wide.to_kind(Kind::BFloat16), narrow);
        }
    }
}

#[test]
fn numbers_are_rounded_to_sixteen_bits_as_tch_rounds_them() {
    if !has_row_attention(16) {
        return;
    }
    // Ties, the largest numbers, those below the smallest normal one, and infinities.
    let bits = [0x3f80_8000u32, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff, 0x0000_8000, 0x0001_8001];
    let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
    let special = [f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-40];
    let weight = Tensor::from_slice(&[values, special.to_vec()].concat());
    // sqrt(mean(x²)) = 1, so the result is the weight.
    let ours = rms_norm(&weight.ones_like(), &weight, 0.0, Kind::BFloat16).unwrap();
    let words = |x: &Tensor| x.view_dtype(Kind::Int16);
    let expected = weight.to_kind(Kind::BFloat16);
    assert_eq!(words(&ours), words(&expected));
    let undefined = Tensor::from_slice(&[f32::NAN, -f32::NAN]);
    let ours = rms_norm(&undefined.ones_like(), &undefined, 0.0, Kind::BFloat16).unwrap();
    assert!(bool::try_from(ours.isnan().all()).unwrap());
}

#[test]
fn sums_of_two_types_are_tchs() {
    let (x, y) = (random(&[70, 33]), random(&[70, 33]).to_kind(Kind::BFloat16));
    let leaf = |x: &Tensor| x.detach().copy().set_requires_grad(true);
    let direction = random(&[70, 33]);
    let [ours, theirs] = [true, false].map(|ours| {
        let leaves = [leaf(&x), leaf(&y)];
        let sum =
            if ours { mixed_sum(&leaves[0], &leaves[1]).unwrap() } else { &leaves[0] + &leaves[1] };
        with_gradients(&leaves, sum, &direction)
    });
    assert_eq!(ours, theirs);
    assert_eq!(mixed_sum(&x, &random(&[33])).unwrap().size(), [70, 33]);
}

#[test]
fn activations_equal_their_definitions_and_keep_what_a_gradient_needs() {
    let quick = |x: &Tensor| x * (x * 1.702).sigmoid();
    let tanh = |x: &Tensor| {
        let inner = (x + x.pow_tensor_scalar(3) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
        x * (inner.tanh() + 1.0) * 0.5
    };
    type Pair<'a> = (fn(Tensor) -> Result<Tensor>, &'a dyn Fn(&Tensor) -> Tensor);
    let pairs: [Pair; 2] = [(quick_gelu, &quick), (gelu_tanh, &tanh)];
    for (activation, definition) in pairs {
        let x = random(&[40, 77]) * 20;
        let expected = definition(&x.to_kind(Kind::Double)).to_kind(Kind::Float);
        let given = x.copy();
        let memory = given.data_ptr();
        let ours = activation(given).unwrap();
        assert_close(&ours, &expected);
        assert!(!has_row_attention(16) || ours.data_ptr() == memory);
        let leaf = x.copy().set_requires_grad(true);
        let trained = activation(&leaf * 1.0).unwrap();
        assert_close(&trained.detach(), &expected);
        let gradient = Tensor::run_backward(&[trained.sum(Kind::Float)], &[&leaf], false, false);
        let other = x.copy().set_requires_grad(true);
        let theirs = definition(&other).sum(Kind::Float);
        let theirs = Tensor::run_backward(&[theirs], &[&other], false, false);
        assert_close(&gradient[0], &theirs[0]);
    }
}

#[test]
fn half_precision_is_tchs_own_operations() {
    let [gate, up] = [random(&[6, 40]), random(&[6, 40])].map(|x| x.to_kind(Kind::Half));
    let compute = || -> Result<Tensor> { swiglu(&gate, &up) };
    let ours = autocast(Device::Cpu, Some(Kind::Half), compute).unwrap().unwrap();
    assert_eq!(ours, silu_times_up(&gate, &up));
    assert_eq!(ours.kind(), Kind::Half);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (x, weight) = (random(&[900, 64]), random(&[64]).set_requires_grad(true));
    let gradient = || {
        let loss = (rms_norm(&x, &weight, 1e-5, Kind::Float).unwrap() * &x).sum(Kind::Float);
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
    assert!(rms_norm(&random(&[4, 8]), &random(&[9]), 1e-5, Kind::Float).is_err());
    assert!(swiglu(&random(&[4, 8]), &random(&[4, 9])).is_err());
}
