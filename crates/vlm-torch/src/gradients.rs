//! Clipping, unscaling and dropping of gradients.

use tch::Tensor;

use crate::{Result, ffi};

/// Scales the gradients of `params` so that their common 2-norm is at most `max_norm`, in place, and
/// returns that norm from before. Parameters without a gradient are passed over; 0 when none has one.
///
/// As `torch.nn.utils.clip_grad_norm_`: the factor is `min(1, max_norm / (norm + 1e-6))`. The host
/// waits for the device once. A norm that is not finite has already spoilt the gradients when it is
/// returned: skip the update and drop them.
/// # Errors
/// libtorch's own (a device that fails).
pub fn clip_grad_norm(params: &[Tensor], max_norm: f64) -> Result<f64> {
    let handles = ffi::handles(params);
    let mut norm = 0.0;
    // SAFETY: `handles` are live tensors borrowed by `params` for the call; `norm` outlives it.
    let status =
        unsafe { ffi::vlm_clip_grad_norm(handles.as_ptr(), handles.len(), max_norm, &mut norm) };
    ffi::check("clip_grad_norm", status)?;
    Ok(norm)
}

/// Multiplies every gradient by `inv_scale` (one f32) and sets `found_inf` (one f32, zero before) to
/// one when any value is not finite; the first half of a step with dynamic loss scaling.
/// # Errors
/// Gradients, `inv_scale` and `found_inf` on different devices; dtypes that libtorch refuses.
pub fn unscale_gradients(
    params: &[Tensor],
    inv_scale: &Tensor,
    found_inf: &mut Tensor,
) -> Result<()> {
    let handles = ffi::handles(params);
    // SAFETY: all handles are live tensors borrowed for the call; `found_inf` is borrowed mutably.
    let status = unsafe {
        ffi::vlm_unscale_gradients(
            handles.as_ptr(),
            handles.len(),
            inv_scale.as_ptr(),
            found_inf.as_mut_ptr(),
        )
    };
    ffi::check("unscale_gradients", status)
}

/// Forgets the gradients, so that the next backward pass writes instead of adding. tch's `zero_grad`
/// keeps zeros, and panics on gradients that are views of communication buckets.
/// # Errors
/// libtorch's own; none is known.
pub fn set_grad_none(params: &[Tensor]) -> Result<()> {
    let handles = ffi::handles(params);
    // SAFETY: `handles` are live tensors borrowed by `params` for the call.
    let status = unsafe { ffi::vlm_set_grad_none(handles.as_ptr(), handles.len()) };
    ffi::check("set_grad_none", status)
}
