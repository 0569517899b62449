// The kernels for the types of tensors.
#pragma once

#include "kernels/choose.h"

#include <ATen/core/Tensor.h>

namespace vlm {

// Whether there are kernels for `tensor`, which must have the type `type`, and for results of the
// type `out`.
inline bool has_kernels(const at::Tensor& tensor, at::ScalarType type, at::ScalarType out) {
  auto is_known = [](at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16; };
  return kernels() != nullptr && tensor.device().is_cpu() && tensor.scalar_type() == type && is_known(type) &&
      is_known(out);
}

inline bool has_kernels(const at::Tensor& tensor, at::ScalarType type) {
  return has_kernels(tensor, type, type);
}

// Calls `body` with a value of the type of the elements, which says only the type, and with the
// kernels for it. `type` must be one that `has_kernels` knows.
template <typename Body>
void with_element_type(at::ScalarType type, const Body& body) {
  if (type == at::kFloat) {
    body(float{}, kernels()->of_float);
  } else {
    TORCH_CHECK(type == at::kBFloat16, "there are no kernels for ", type);
    body(Bf16{}, kernels()->of_bf16);
  }
}

template <typename T>
const T* data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace vlm
