//! One step of AdamW by libtorch's fused kernels. Names, state dictionaries and files are the
//! caller's: tch's own optimizers cannot save their state.

use std::ffi::c_int;
use std::ptr;

use tch::Tensor;

use crate::{Error, Result, ffi};

/// The numbers of an AdamW step (Loshchilov & Hutter 2019), named as `torch.optim.AdamW` does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first and of the second moment.
    pub betas: (f64, f64),
    /// Decoupled weight decay: parameters shrink by `lr * weight_decay`.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamWStep {
    /// PyTorch's defaults.
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), weight_decay: 1e-2, eps: 1e-8 }
    }
}

/// What dynamic loss scaling tells the step; each one f32 on the parameters' device. Neither makes
/// the host wait for the device.
#[derive(Debug, Clone, Copy, Default)]
pub struct LossScale<'a> {
    /// Gradients are divided by this. Leave out when they were unscaled before (to be clipped, say).
    pub grad_scale: Option<&'a Tensor>,
    /// One: the step does nothing, the step counters included.
    pub found_inf: Option<&'a Tensor>,
}

/// Updates `params`, the moments `exp_avgs` and `exp_avg_sqs`, and `steps` (one f32 each, on its
/// parameter's device; counted up here) in place from `grads`. All five lists run in parallel; the
/// moments have their parameter's shape, dtype, device and strides (`zeros_like`).
///
/// Equal to `torch.optim.AdamW(fused=True)`; devices and dtypes may be mixed.
/// # Errors
/// Lists of different lengths; tensors that do not match their parameter, by number and kind.
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

/// Makes libtorch take deterministic kernels, and refuse operations that have none. On CUDA, cuBLAS
/// also wants `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment before its first use.
/// # Errors
/// libtorch's own; none is known.
pub fn deterministic_algorithms(on: bool) -> Result<()> {
    // SAFETY: takes one integer.
    let status = unsafe { ffi::vlm_set_deterministic(c_int::from(on)) };
    ffi::check("deterministic_algorithms", status)
}
