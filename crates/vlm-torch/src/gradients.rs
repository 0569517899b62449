//! Clips, unscales and resets gradients.

use std::ptr;

use tch::Tensor;

use crate::{Error, Result, ffi};

/// The 2-norm over the gradients of `params`, as a scalar on their device; the CPU does not wait for
/// it. Parameters without a gradient are ignored; the norm is 0 if none has one.
///
/// # Errors
/// libtorch fails, for example because of the device.
pub fn grad_norm(params: &[Tensor]) -> Result<Tensor> {
    let handles = ffi::handles(params);
    let mut norm = ptr::null_mut();
    // SAFETY: `handles` are live tensors borrowed by `params` for the call, which writes the pointer
    // once.
    let status = unsafe { ffi::vlm_grad_norm(handles.as_ptr(), handles.len(), &mut norm) };
    ffi::check("grad_norm", status)?;
    // SAFETY: on success, the pointer is a tensor that the caller owns.
    Ok(unsafe { Tensor::from_ptr(norm) })
}

/// Scales the gradients of `params`, whose 2-norm is `norm`, in place to at most `max_norm`, by the
/// factor `min(1, max_norm / (norm + 1e-6))`. The CPU does not wait for the device.
///
/// # Errors
/// As [`grad_norm`].
pub fn clip_gradients(params: &[Tensor], norm: &Tensor, max_norm: f64) -> Result<()> {
    let handles = ffi::handles(params);
    // SAFETY: all handles are live tensors borrowed for the call.
    let status = unsafe {
        ffi::vlm_clip_gradients(handles.as_ptr(), handles.len(), norm.as_ptr(), max_norm)
    };
    ffi::check("clip_gradients", status)
}

/// Scales the gradients of `params` in place so that their total 2-norm is at most `max_norm`, and
/// returns the norm before. Parameters without a gradient are ignored; the norm is 0 if none has
/// one.
///
/// As `torch.nn.utils.clip_grad_norm_`: the factor is `min(1, max_norm / (norm + 1e-6))`. The CPU
/// waits for the device once. If the norm that is returned is not finite, neither are the
/// gradients: skip the update and reset them.
///
/// # Errors
/// libtorch fails, for example because of the device.
pub fn clip_grad_norm(params: &[Tensor], max_norm: f64) -> Result<f64> {
    let norm = grad_norm(params)?;
    clip_gradients(params, &norm, max_norm)?;
    f64::try_from(&norm).map_err(|error| Error::tch("clip_grad_norm", &error))
}

/// Multiplies every gradient by `inv_scale` (one float32), and sets `found_inf` (one float32, 0
/// before) to 1 if a value is not finite. This is the first part of a step with dynamic loss
/// scaling.
///
/// # Errors
/// Gradients, `inv_scale` and `found_inf` are on different devices, or libtorch does not support
/// their dtypes.
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

/// Resets the gradients to none, so that the next backward pass writes instead of adding. tch's
/// `zero_grad` sets them to zero instead, and panics for gradients that are views of a reducer's
/// buckets.
///
/// # Errors
/// libtorch fails; no such case is known.
pub fn set_grad_none(params: &[Tensor]) -> Result<()> {
    let handles = ffi::handles(params);
    // SAFETY: `handles` are live tensors borrowed by `params` for the call.
    let status = unsafe { ffi::vlm_set_grad_none(handles.as_ptr(), handles.len()) };
    ffi::check("set_grad_none", status)
}
