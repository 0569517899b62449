//! Normalisation, activations and sums as one operation each.
//!
//! On a CPU with AVX-512 or AVX2, in float32 and bfloat16, each of them takes one pass over the
//! memory and computes in float32; second derivatives are then not supported. Elsewhere they are
//! libtorch's operations.

use std::ptr;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::{Error, Result, ffi};

/// Root-mean-square normalisation over the last dimension, as `torch.nn.functional.rms_norm`: `x`
/// `[…, width]`, `weight` `[width]` → `[…, width]` of the type `out` (a
/// floating-point one). Only `x`, the weight and a number per row are kept for the backward pass.
///
/// # Errors
/// Shapes, types or devices that do not agree; no memory left.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: Kind) -> Result<Tensor> {
    const OPERATION: &str = "rms_norm";
    let out_type = ffi::scalar_type(OPERATION, out)?;
    owned(OPERATION, |out| {
        // SAFETY: the handles are live tensors that are borrowed for the call, and `out` has room
        // for one pointer.
        unsafe { ffi::vlm_rms_norm(x.as_ptr(), weight.as_ptr(), eps, out_type, out) }
    })
}

/// The gated activation of SwiGLU (Shazeer 2020): `silu(gate) · up`, element by element. Only
/// `gate` and `up` are kept for the backward pass.
///
/// # Errors
/// Shapes, types or devices that do not agree; no memory left.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    owned("swiglu", |out| {
        // SAFETY: as above.
        unsafe { ffi::vlm_swiglu(gate.as_ptr(), up.as_ptr(), out) }
    })
}

/// `x + y`, where `y` may be of a narrower type than `x`, which libtorch would first convert.
///
/// # Errors
/// Shapes, types or devices that do not agree; no memory left.
pub fn mixed_sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    owned("mixed_sum", |out| {
        // SAFETY: as above.
        unsafe { ffi::vlm_mixed_sum(x.as_ptr(), y.as_ptr(), out) }
    })
}

/// The approximation of GELU that OpenAI's CLIP uses, `x · sigmoid(1.702 x)`, which takes the memory
/// of `x` if no gradient needs its values.
///
/// # Errors
/// A device without the operation; no memory left.
pub fn quick_gelu(x: Tensor) -> Result<Tensor> {
    owned("quick_gelu", |out| {
        // SAFETY: as above; no one else has the tensor, whose values the call may change.
        unsafe { ffi::vlm_quick_gelu(x.as_ptr(), out) }
    })
}

/// The approximation of GELU that SigLIP uses, `x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`
/// (Hendrycks and Gimpel 2016), which takes the memory of `x` if no gradient needs its values.
///
/// # Errors
/// A device without the operation; no memory left.
pub fn gelu_tanh(x: Tensor) -> Result<Tensor> {
    owned("gelu_tanh", |out| {
        // SAFETY: as above; no one else has the tensor, whose values the call may change.
        unsafe { ffi::vlm_gelu_tanh(x.as_ptr(), out) }
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
