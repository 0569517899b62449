use tch::{Kind, Tensor};
use vlm_torch::{AdamWStep, LossScale, fused_adamw_step};

use crate::values;

struct State {
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl State {
    fn new(params: Vec<Tensor>) -> Self {
        Self {
            exp_avgs: params.iter().map(Tensor::zeros_like).collect(),
            exp_avg_sqs: params.iter().map(Tensor::zeros_like).collect(),
            steps: params.iter().map(|_| Tensor::from_slice(&[0f32]).squeeze()).collect(),
            params,
        }
    }

    fn step(&self, grads: &[Tensor], scale: LossScale<'_>) -> vlm_torch::Result<()> {
        let step = AdamWStep { lr: 0.01, weight_decay: 0.1, ..AdamWStep::default() };
        fused_adamw_step(
            &self.params, grads, &self.exp_avgs, &self.exp_avg_sqs, &self.steps, &step, scale,
        )
    }
}

/// ```python
/// import torch
/// p = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
/// opt = torch.optim.AdamW([p], lr=0.01, weight_decay=0.1)
/// for k in range(3):
///     p.grad = torch.tensor([0.1, -0.2, 0.3]) * (k + 1)
///     opt.step()
/// print(p.tolist())
/// ```
const AFTER_THREE_STEPS: [f64; 3] = [0.9678008556365967, -1.96480393409729, 2.9618070125579834];

#[test]
fn three_steps_equal_pytorch() {
    let state = State::new(vec![Tensor::from_slice(&[1f32, -2.0, 3.0])]);
    for k in 1..=3 {
        let grad = Tensor::from_slice(&[0.1f32, -0.2, 0.3]) * f64::from(k);
        state.step(&[grad], LossScale::default()).unwrap();
    }
    for (found, expected) in values(&state.params[0]).iter().zip(AFTER_THREE_STEPS) {
        // The fused kernel's order of float32 operations differs from that of the plain one.
        assert!((found - expected).abs() < 5e-7, "{found} instead of {expected}");
    }
    assert_eq!(values(&state.steps[0]), [3.0]);
}

#[test]
fn infinite_gradients_skip_the_step_and_do_not_count_it() {
    let state = State::new(vec![Tensor::from_slice(&[1f32])]);
    let (found, scale) =
        (Tensor::from_slice(&[1f32]).squeeze(), Tensor::from_slice(&[2f32]).squeeze());
    let inf = LossScale { grad_scale: Some(&scale), found_inf: Some(&found) };
    state.step(&[Tensor::from_slice(&[f32::INFINITY])], inf).unwrap();
    assert_eq!((values(&state.params[0]), values(&state.steps[0])), (vec![1.0], vec![0.0]));
}

#[test]
fn dtypes_may_be_mixed_and_gradients_may_have_other_strides() {
    let wide = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).reshape([2, 2]);
    let narrow = Tensor::from_slice(&[1f32, 2.0]).to_kind(Kind::BFloat16);
    let (mixed, alone) = (State::new(vec![wide.copy(), narrow]), State::new(vec![wide.copy()]));
    let grad = Tensor::from_slice(&[0.1f32, 0.2, 0.3, 0.4]).reshape([2, 2]);
    let transposed_in_memory = grad.tr().contiguous().tr();
    let bf16 = Tensor::from_slice(&[0.5f32, 0.5]).to_kind(Kind::BFloat16);
    mixed.step(&[transposed_in_memory, bf16], LossScale::default()).unwrap();
    alone.step(&[grad], LossScale::default()).unwrap();
    assert_eq!(values(&mixed.params[0]), values(&alone.params[0]));
    assert_ne!(values(&mixed.params[1]), [1.0, 2.0]);
}

#[test]
fn mismatches_are_errors_with_the_index_of_the_parameter() {
    let state = State::new(vec![Tensor::from_slice(&[1f32, 2.0])]);
    let error =
        state.step(&[Tensor::from_slice(&[1f32])], LossScale::default()).unwrap_err().to_string();
    assert!(error.starts_with("fused_adamw_step: gradient 0 is Float[1] on cpu"), "{error}");
    let error = state.step(&[], LossScale::default()).unwrap_err().to_string();
    assert!(error.contains("differ in length: [1, 0, 1, 1, 1]"), "{error}");
    assert_eq!(values(&state.steps[0]), [0.0]);
}
