//! The linear layer with the fastest product of this CPU.

use std::ptr;

use tch::Tensor;

use crate::{Error, Result, ffi};

/// `x Wᵀ + b`, as `torch.nn.functional.linear`: `x` `[…, in]`, `weight` `[out, in]`, `bias` `[out]`
/// → `[…, out]`. Second derivatives are not supported.
///
/// On a CPU with AVX-512 that is not Intel's, large float32 products are oneDNN's, which take half
/// the time of libtorch's; sums are then in another order. The choice depends on the CPU and on the
/// shapes, and not on a measurement, so that a run gives the same numbers again.
///
/// # Errors
/// Shapes, dtypes or devices that do not agree; no memory left.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OPERATION: &str = "linear";
    let mut out = ptr::null_mut();
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    // SAFETY: the handles are live tensors that are borrowed for the call, or null for no bias, and
    // `out` has room for one pointer.
    let status = unsafe { ffi::vlm_linear(x.as_ptr(), weight.as_ptr(), bias, &mut out) };
    ffi::check(OPERATION, status)?;
    if out.is_null() {
        return Err(Error::torch(OPERATION, "libtorch returned no tensor"));
    }
    // SAFETY: on success the shim wrote a tensor allocated for the caller to own.
    Ok(unsafe { Tensor::from_ptr(out) })
}
