//! The linear layer equals tch's, in values and gradients.

use tch::{Device, Kind, Tensor};
use vlm_torch::{autocast, linear};

use crate::random;

/// Relative to the largest value: a sum of 512 products in another order.
const TOLERANCE: f64 = 2e-6;

/// Large enough for oneDNN's product, where the CPU has it.
const ROWS: [i64; 3] = [2, 300, 256];

fn assert_close(a: &Tensor, b: &Tensor) {
    assert_eq!(a.size(), b.size());
    let number = |x: Tensor| f64::try_from(x.abs().max()).unwrap();
    assert!(number(a - b) <= TOLERANCE * number(b.shallow_clone()), "{:e}", number(a - b));
}

#[test]
fn linear_equals_tchs_in_values_and_gradients() {
    tch::manual_seed(3);
    // The model adds to the result in place.
    let residual = random(&[2, 300, 512]);
    for (has_bias, trained) in
        [(true, [true, true]), (false, [true, true]), (true, [true, false]), (true, [false, true])]
    {
        let x = random(&ROWS).set_requires_grad(trained[0]);
        let weight = random(&[512, 256]).set_requires_grad(trained[1]);
        let bias = has_bias.then(|| random(&[512]).set_requires_grad(trained[1]));
        let direction = random(&[2, 300, 512]);
        let outputs =
            [linear(&x, &weight, bias.as_ref()).unwrap(), x.linear(&weight, bias.as_ref())];
        let outputs = outputs.map(|mut output| {
            output += &residual;
            output
        });
        assert_close(&outputs[0], &outputs[1]);
        let leaves: Vec<&Tensor> = [Some(&x), Some(&weight), bias.as_ref()]
            .into_iter()
            .flatten()
            .filter(|leaf| leaf.requires_grad())
            .collect();
        let [ours, theirs] = outputs.map(|output| {
            let loss = (output * &direction).sum(Kind::Float);
            Tensor::run_backward(&[loss], &leaves, false, false)
        });
        assert_eq!(ours.len(), leaves.len());
        ours.iter().zip(&theirs).for_each(|(a, b)| assert_close(a, b));
    }
}

/// Whether libtorch's own products are used, MKL's, which with several threads add in an order that
/// depends on the number of rows.
fn is_intel() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains("GenuineIntel"))
}

#[test]
fn the_rows_of_a_product_do_not_depend_on_the_batch() {
    for (rows, width, output) in [(197, 768, 3072), (197, 3072, 768), (197, 48, 96), (50, 192, 384)]
    {
        let (x, weight) = (random(&[8, rows, width]), random(&[output, width]));
        let whole = linear(&x, &weight, None).unwrap();
        for batch in [1, 3] {
            let part = linear(&x.narrow(0, 0, batch), &weight, None).unwrap();
            let of_whole = whole.narrow(0, 0, batch);
            assert_close(&part, &of_whole);
            if !is_intel() {
                assert_eq!(part, of_whole, "{batch} × {rows} × {width} × {output}");
            }
        }
    }
}

#[test]
fn linear_computes_in_16_bits_under_autocast() {
    let (x, weight) = (random(&ROWS), random(&[512, 256]));
    let product = || linear(&x, &weight, None).unwrap();
    let output = autocast(Device::Cpu, Some(Kind::BFloat16), product).unwrap();
    assert_eq!(output.kind(), Kind::BFloat16);
    assert_eq!(product().kind(), Kind::Float);
}

#[test]
fn shapes_that_do_not_agree_are_an_error() {
    let error = linear(&random(&ROWS), &random(&[512, 255]), None).unwrap_err();
    assert!(error.to_string().contains("256"), "{error}");
}
