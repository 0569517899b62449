// Loops on libtorch's own threads.
#pragma once

#include <ATen/TensorIterator.h>
#include <ATen/ops/arange.h>

namespace vlm {

// Calls `body(begin, end)` on several threads for ranges that together are 0 to `count`. The loop is
// libtorch's, compiled into it: `at::parallel_for` would be compiled here, and need a second OpenMP.
template <typename Body>
void parallel_ranges(int64_t count, const Body& body) {
  if (count == 0) {
    return;
  }
  at::Tensor indices = at::arange(count, at::kLong);
  auto iterator = at::TensorIterator::nullary_op(indices);
  auto loop = [&](char** data, const int64_t* strides, int64_t inner, int64_t outer) {
    for (int64_t i = 0; i < outer; ++i) {
      const int64_t begin = *reinterpret_cast<const int64_t*>(data[0] + i * strides[1]);
      body(begin, begin + inner);
    }
  };
  iterator.for_each(loop, /*grain_size=*/1);
}

}  // namespace vlm
