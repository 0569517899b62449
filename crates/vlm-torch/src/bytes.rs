//! Converts tensors from and to bytes, for dtypes whose elements are one number.

use tch::{Kind, Tensor};

use crate::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("this project's files are little-endian and are read without conversion");

/// A CPU tensor of `shape` and `kind` with a copy of `bytes`, which are row-major and
/// little-endian.
///
/// # Errors
/// The length of `bytes` does not fit the shape and kind, or the shape is negative or too large.
pub fn tensor_from_bytes(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor> {
    const OPERATION: &str = "tensor_from_bytes";
    let expected = num_bytes(shape, kind).ok_or_else(|| {
        Error::argument(OPERATION, format!("{shape:?} of {kind:?} is not a valid shape"))
    })?;
    if bytes.len() != expected {
        return Err(Error::argument(
            OPERATION,
            format!("{shape:?} of {kind:?} takes {expected} bytes, found {}", bytes.len()),
        ));
    }
    Tensor::f_from_data_size(bytes, shape, kind).map_err(|error| Error::tch(OPERATION, &error))
}

/// The values of a tensor on any device and with any strides, row-major and little-endian.
///
/// # Errors
/// The tensor is sparse or undefined, or its device fails.
pub fn tensor_to_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    const OPERATION: &str = "tensor_to_bytes";
    if !tensor.defined() || tensor.is_sparse() {
        return Err(Error::argument(OPERATION, "expected a dense, defined tensor"));
    }
    let kind = tensor.f_kind().map_err(|error| Error::tch(OPERATION, &error))?;
    let size = num_bytes(&tensor.size(), kind).ok_or_else(|| {
        Error::argument(OPERATION, format!("{:?} of {kind:?} is too large", tensor.size()))
    })?;
    let mut bytes = vec![0; size];
    tensor
        .f_copy_data_u8(&mut bytes, tensor.numel())
        .map_err(|error| Error::tch(OPERATION, &error))?;
    Ok(bytes)
}

/// The size of a tensor in bytes; `None` if the shape is negative or too large.
pub(crate) fn num_bytes(shape: &[i64], kind: Kind) -> Option<usize> {
    shape
        .iter()
        .try_fold(kind.elt_size_in_bytes(), |product, &length| {
            product.checked_mul(usize::try_from(length).ok()?)
        })
        .filter(|&bytes| isize::try_from(bytes).is_ok())
}
