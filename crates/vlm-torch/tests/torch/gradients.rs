use tch::{Kind, Tensor};
use vlm_torch::{clip_grad_norm, set_grad_none, unscale_gradients};

use crate::{leaf, values};

/// Parameters with the gradients 3 and 4, whose norm is 5, and one without a gradient.
fn three_and_four() -> Vec<Tensor> {
    let params = vec![leaf(&[1.0]), leaf(&[1.0]), leaf(&[1.0])];
    (&params[0] * 3.0 + &params[1] * 4.0).sum(Kind::Float).backward();
    params
}

#[test]
fn clipping_returns_the_norm_before_and_scales_to_the_maximum() {
    let params = three_and_four();
    let norm = clip_grad_norm(&params, 1.0).unwrap();
    assert_eq!(norm, 5.0);
    let clipped: Vec<f64> = params[..2].iter().flat_map(|p| values(&p.grad())).collect();
    for (found, expected) in clipped.iter().zip([0.6, 0.8]) {
        // The divisor is norm + 1e-6.
        assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
    }
    assert!(!params[2].grad().defined(), "a parameter without a gradient gets none");
}

#[test]
fn clipping_does_not_change_small_gradients() {
    let params = three_and_four();
    assert_eq!(clip_grad_norm(&params, 10.0).unwrap(), 5.0);
    assert_eq!(values(&params[0].grad()), [3.0]);
}

#[test]
fn the_norm_of_no_gradients_is_zero() {
    assert_eq!(clip_grad_norm(&[], 1.0).unwrap(), 0.0);
    assert_eq!(clip_grad_norm(&[leaf(&[1.0])], 1.0).unwrap(), 0.0);
}

#[test]
fn clipping_supports_mixed_dtypes() {
    let (single, half) =
        (leaf(&[1.0]), leaf(&[1.0]).detach().to_kind(Kind::BFloat16).set_requires_grad(true));
    (&single * 3.0 + half.to_kind(Kind::Float) * 4.0).sum(Kind::Float).backward();
    assert_eq!(clip_grad_norm(&[single, half.shallow_clone()], 1.0).unwrap(), 5.0);
    assert_eq!(half.grad().kind(), Kind::BFloat16);
}

#[test]
fn a_norm_that_is_not_finite_is_returned() {
    let param = leaf(&[1.0]);
    (&param * f64::INFINITY).sum(Kind::Float).backward();
    assert!(!clip_grad_norm(&[param], 1.0).unwrap().is_finite());
}

#[test]
fn set_grad_none_makes_gradients_undefined() {
    let params = three_and_four();
    set_grad_none(&params).unwrap();
    assert!(params.iter().all(|p| !p.grad().defined()));
}

#[test]
fn unscaling_multiplies_gradients_and_reports_infinities() {
    let params = three_and_four();
    let mut found_inf = Tensor::from_slice(&[0f32]);
    unscale_gradients(&params, &Tensor::from_slice(&[0.5f32]), &mut found_inf).unwrap();
    assert_eq!((values(&params[0].grad()), values(&found_inf)), (vec![1.5], vec![0.0]));

    let param = leaf(&[1.0]);
    (&param * f64::INFINITY).sum(Kind::Float).backward();
    unscale_gradients(&[param], &Tensor::from_slice(&[0.5f32]), &mut found_inf).unwrap();
    assert_eq!(values(&found_inf), [1.0]);
}
