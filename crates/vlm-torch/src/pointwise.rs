//! Normalisation and activation as one operation each.

use std::ptr;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, Result, ffi};

/// Root-mean-square normalisation over the last dimension, as `torch.nn.functional.rms_norm`: `x`
/// `[…, width]`, `weight` `[width]` → `[…, width]`.
///
/// Float32 on a CPU with AVX-512 takes one pass over the memory, and one tensor of the size of `x`
/// is kept for the backward pass: `x` itself. Second derivatives are then not supported.
///
/// # Errors
/// Shapes, types or devices that do not agree; no memory left.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    owned("rms_norm", |out| {
        // SAFETY: the handles are live tensors that are borrowed for the call, and `out` has room
        // for one pointer.
        unsafe { ffi::vlm_rms_norm(x.as_ptr(), weight.as_ptr(), eps, out) }
    })
}

/// The gated activation of SwiGLU (Shazeer 2020): `silu(gate) · up`, element by element.
///
/// As [`rms_norm`]; only `gate` and `up` are kept for the backward pass.
///
/// # Errors
/// Shapes, types or devices that do not agree; no memory left.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    owned("swiglu", |out| {
        // SAFETY: as above.
        unsafe { ffi::vlm_swiglu(gate.as_ptr(), up.as_ptr(), out) }
    })
}

/// The tensor that `call` writes to its argument.
fn owned(
    operation: &'static str,
    call: impl FnOnce(*mut *mut C_tensor) -> std::ffi::c_int,
) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    ffi::check(operation, call(&mut out))?;
    if out.is_null() {
        return Err(Error::torch(operation, "libtorch returned no tensor"));
    }
    // SAFETY: on success the shim wrote a tensor allocated for the caller to own.
    Ok(unsafe { Tensor::from_ptr(out) })
}
