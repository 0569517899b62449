//! Index tensors that are computed on the CPU from a batch's lengths and positions.

use tch::{Device, Tensor};

/// `values` as a tensor on `device` (i64). The copy to a GPU is asynchronous.
///
/// # Panics
/// When there is no memory left, as every tensor operation of a forward pass.
pub(crate) fn index_tensor(values: &[i64], device: Device) -> Tensor {
    vlm_torch::slice_to_device(values, device).unwrap_or_else(|error| panic!("{error}"))
}
