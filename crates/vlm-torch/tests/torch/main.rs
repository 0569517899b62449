//! Tests of this crate's public functions, compared with tch's own operations and PyTorch's
//! numbers.

mod autocast;
mod bytes;
mod checkpoint;
mod distributed;
mod gradients;
mod kernels;
mod linear;
mod matrix_rate;
mod optimizer;
mod pointwise;
mod process;
mod profile;
mod pth;
mod row_attention;

use tch::{Device, Kind, Tensor};

/// A float32 leaf that requires a gradient.
fn leaf(values: &[f32]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// Normal values on the CPU, from libtorch's generator.
fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).expect("a dense tensor")
}
