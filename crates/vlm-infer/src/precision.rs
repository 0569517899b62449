//! The data type of the forward pass.

use tch::{Device, Kind};
use vlm_shapes::Dtype;

/// The default type on `device`: bfloat16 on CUDA, float32 on the CPU.
pub fn default_dtype(device: Device) -> Dtype {
    if device.is_cuda() { Dtype::Bfloat16 } else { Dtype::Float32 }
}

/// The type to autocast to; `None` for float32, which needs no autocast.
pub fn autocast_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::Float32 => None,
        Dtype::Bfloat16 => Some(Kind::BFloat16),
        Dtype::Float16 => Some(Kind::Half),
    }
}
