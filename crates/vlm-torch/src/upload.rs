//! Values of the host on the way to a device.

use std::ptr;

use tch::kind::Element;
use tch::{Device, Kind, Tensor};

use crate::bytes::num_bytes;
use crate::{Error, Result, ffi, tensor_from_bytes};

/// A tensor `shape` of `kind` on `device` that holds `bytes`: row-major, little-endian. A copy to a GPU
/// is queued, from page-locked memory, and this returns before it is done; what is queued on the
/// device afterwards sees the values.
/// # Errors
/// `bytes` is not exactly as long as shape and kind say; no memory is left, on either side.
pub fn bytes_to_device(bytes: &[u8], shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    const OPERATION: &str = "copy to the device";
    let Device::Cuda(_) = device else { return tensor_from_bytes(bytes, shape, kind) };
    if num_bytes(shape, kind) != Some(bytes.len()) {
        let found = bytes.len();
        return Err(Error::argument(
            OPERATION,
            format!("{shape:?} of {kind:?} from {found} bytes"),
        ));
    }
    let mut pinned = ptr::null_mut();
    // SAFETY: the bytes are borrowed for the call, which copies them, and the pointer is written once.
    let status = unsafe { ffi::vlm_pinned_bytes(bytes.as_ptr(), bytes.len(), &mut pinned) };
    ffi::check(OPERATION, status)?;
    // SAFETY: a tensor that the call made and gave to us.
    let pinned = unsafe { Tensor::from_ptr(pinned) };
    let send = || {
        let typed = if bytes.is_empty() {
            Tensor::f_empty(shape, (kind, Device::Cpu))?
        } else {
            pinned.f_view_dtype(kind)?.f_view(shape)?
        };
        typed.f_to_dtype_layout((kind, device), true, false)
    };
    send().map_err(|error| Error::tch(OPERATION, &error))
}

/// As [`bytes_to_device`], of a slice, with one dimension.
/// # Errors
/// No memory is left, on either side.
pub fn slice_to_device<T: Element>(values: &[T], device: Device) -> Result<Tensor> {
    // SAFETY: elements of tensors are plain numbers without padding, so every byte of the slice is
    // initialised.
    let bytes =
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
    bytes_to_device(bytes, &[values.len() as i64], T::KIND, device)
}
