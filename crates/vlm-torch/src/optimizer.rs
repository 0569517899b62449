//! A step of AdamW with libtorch's fused kernels. The caller keeps the optimizer's state, so that
//! it can save it, which tch's own optimizers cannot.

use std::ffi::c_int;
use std::ptr;

use tch::Tensor;

use crate::{Error, Result, ffi};

/// The hyperparameters of an AdamW step (Loshchilov & Hutter 2019), named as in
/// `torch.optim.AdamW`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay rates of the first and of the second moment.
    pub betas: (f64, f64),
    /// Decoupled weight decay: parameters are multiplied by `1 - lr * weight_decay`.
    pub weight_decay: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
}

impl Default for AdamWStep {
    /// PyTorch's defaults.
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), weight_decay: 1e-2, eps: 1e-8 }
    }
}

/// Inputs of a step with dynamic loss scaling; each is one float32 on the parameters' device. The
/// CPU does not wait for their values.
#[derive(Debug, Clone, Copy, Default)]
pub struct LossScale<'a> {
    /// Gradients are divided by this. Leave it out if they were unscaled before, for example to
    /// clip them.
    pub grad_scale: Option<&'a Tensor>,
    /// If this is 1, the step changes neither parameters nor state, the step counters included.
    pub found_inf: Option<&'a Tensor>,
}

/// Updates in place, from `grads`: `params`, the moments `exp_avgs` and `exp_avg_sqs`, and the step
/// counters `steps` (one float32 each, on its parameter's device), which are incremented. All five
/// lists have the order of `params`; the moments have their parameter's shape, dtype, device and
/// strides (`zeros_like`).
///
/// Equal to `torch.optim.AdamW(fused=True)`; devices and dtypes may be mixed.
///
/// # Errors
/// The lists have different lengths, or a tensor does not match its parameter; the message has its
/// index.
pub fn fused_adamw_step(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    step: &AdamWStep,
    scale: LossScale<'_>,
) -> Result<()> {
    const OPERATION: &str = "fused_adamw_step";
    let lengths = [params.len(), grads.len(), exp_avgs.len(), exp_avg_sqs.len(), steps.len()];
    if lengths.iter().any(|&length| length != params.len()) {
        return Err(Error::argument(
            OPERATION,
            format!("params, grads, exp_avgs, exp_avg_sqs and steps differ in length: {lengths:?}"),
        ));
    }
    let optional = |tensor: Option<&Tensor>| tensor.map_or(ptr::null(), Tensor::as_ptr);
    let [p, g, m, v, s] = [params, grads, exp_avgs, exp_avg_sqs, steps].map(ffi::handles);
    // SAFETY: five arrays of `p.len()` live handles, borrowed for the call; null stands for a
    // missing scale. The shim checks shapes, dtypes, devices and strides before it writes.
    let status = unsafe {
        ffi::vlm_fused_adamw_step(
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            s.as_ptr(),
            p.len(),
            step.lr,
            step.betas.0,
            step.betas.1,
            step.weight_decay,
            step.eps,
            optional(scale.grad_scale),
            optional(scale.found_inf),
        )
    };
    ffi::check(OPERATION, status)
}

/// Makes libtorch use deterministic kernels only; an operation that has none fails. For CUDA, call it
/// at the start of the program: cuBLAS reads the environment variable `CUBLAS_WORKSPACE_CONFIG`,
/// which is set here unless the user has set it, at its first use.
///
/// # Errors
/// libtorch fails; no such case is known.
pub fn deterministic_algorithms(on: bool) -> Result<()> {
    const WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";
    if on && std::env::var_os(WORKSPACE).is_none() {
        // SAFETY: by the contract above, no other thread reads the environment yet.
        unsafe { std::env::set_var(WORKSPACE, ":4096:8") };
    }
    // SAFETY: takes one integer.
    let status = unsafe { ffi::vlm_set_deterministic(c_int::from(on)) };
    ffi::check("deterministic_algorithms", status)
}
