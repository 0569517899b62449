//! Copies values from the CPU to a device.

use std::ptr;

use tch::kind::Element;
use tch::{Device, Kind, Tensor};

use crate::bytes::num_bytes;
use crate::{Error, Result, ffi, tensor_from_bytes};

/// A tensor of `shape` and `kind` on `device` with the values `bytes`, which are row-major and
/// little-endian. A copy to a GPU is asynchronous, from pinned memory; operations that are queued
/// on the device afterwards use the copied values.
///
/// # Errors
/// The length of `bytes` does not fit the shape and kind, or there is no memory left.
pub fn bytes_to_device(bytes: &[u8], shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    const OPERATION: &str = "copy to the device";
    let Device::Cuda(_) = device else { return tensor_from_bytes(bytes, shape, kind) };
    if num_bytes(shape, kind) != Some(bytes.len()) {
        let found = bytes.len();
        return Err(Error::argument(
            OPERATION,
            format!("{shape:?} of {kind:?} does not take the {found} bytes found"),
        ));
    }
    let mut pinned = ptr::null_mut();
    // SAFETY: the bytes are borrowed for the call, which copies them and writes the pointer once.
    let status = unsafe { ffi::vlm_pinned_bytes(bytes.as_ptr(), bytes.len(), &mut pinned) };
    ffi::check(OPERATION, status)?;
    // SAFETY: on success, the pointer is a tensor that the caller owns.
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

/// As [`bytes_to_device`], for a slice; the tensor has one dimension.
///
/// # Errors
/// There is no memory left.
pub fn slice_to_device<T: Element>(values: &[T], device: Device) -> Result<Tensor> {
    // SAFETY: elements of tensors are plain numbers without padding, so every byte of the slice is
    // initialised.
    let bytes =
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
    bytes_to_device(bytes, &[values.len() as i64], T::KIND, device)
}
