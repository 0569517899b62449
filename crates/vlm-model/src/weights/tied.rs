//! Tensors that are tied: they are the same view of the same memory.

use tch::Tensor;

/// Address, shape and strides. Two tensors with the same view are tied.
pub(super) type View = (usize, Vec<i64>, Vec<i64>);

/// The view of a tensor.
pub(super) fn view_of(tensor: &Tensor) -> View {
    (tensor.data_ptr() as usize, tensor.size(), tensor.stride())
}
