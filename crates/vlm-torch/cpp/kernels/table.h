// The set of kernels of the file that includes this one.
#pragma once

#include "attention.h"
#include "pointwise.h"

namespace {

template <typename T>
constexpr vlm::ElementKernels<T> element_kernels() {
  return {
      attention_forward<T>, attention_backward<T>, rms_norm_forward<T>, rms_norm_backward<T>, swiglu_forward<T>,
      swiglu_backward<T>,   quick_gelu<T>,         gelu_tanh<T>,         add<T>,
  };
}

constexpr vlm::Kernels kKernels{
    attention_scratch_size, element_kernels<float>(), element_kernels<vlm::Bf16>()};

}  // namespace
