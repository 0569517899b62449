//! Tensors from and to plain bytes, for every dtype that is one number wide.

use tch::{Kind, Tensor};

use crate::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("the files of this project are little-endian and are copied without conversion");

/// A CPU tensor of `shape` and `kind` that holds a copy of `bytes`: row-major, little-endian.
/// # Errors
/// `bytes` is not exactly as long as shape and kind say, or the shape is negative or too large.
pub fn tensor_from_bytes(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor> {
    const OPERATION: &str = "tensor_from_bytes";
    let expected = num_bytes(shape, kind).ok_or_else(|| {
        Error::argument(OPERATION, format!("no tensor has the shape {shape:?} of {kind:?}"))
    })?;
    if bytes.len() != expected {
        return Err(Error::argument(
            OPERATION,
            format!("{shape:?} of {kind:?} takes {expected} bytes, found {}", bytes.len()),
        ));
    }
    Tensor::f_from_data_size(bytes, shape, kind).map_err(|error| Error::tch(OPERATION, &error))
}

/// The values of a tensor on any device, row-major and little-endian, whatever its strides.
/// # Errors
/// Sparse or undefined tensors; a device that fails.
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

/// Bytes of a tensor; `None` where no tensor has this shape.
pub(crate) fn num_bytes(shape: &[i64], kind: Kind) -> Option<usize> {
    shape
        .iter()
        .try_fold(kind.elt_size_in_bytes(), |product, &length| {
            product.checked_mul(usize::try_from(length).ok()?)
        })
        .filter(|&bytes| isize::try_from(bytes).is_ok())
}
