// Root-mean-square normalisation and SwiGLU as one node of autograd each, on CPUs with AVX-512: one
// pass over the memory, and fewer tensors kept for the backward pass.
#include "avx512/pointwise.h"

#include "avx512/available.h"
#include "guard.h"
#include "parallel.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

namespace {

// Number of elements that a thread takes at a time, about.
constexpr int64_t kChunk = 16384;

bool is_float_on_cpu(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat;
}

// The chunks of a tensor's rows do not depend on the number of threads, nor does the order of sums.
struct RowChunks {
  int64_t width, rows, per_chunk;

  explicit RowChunks(const at::Tensor& x)
      : width(x.size(-1)), rows(x.numel() / width), per_chunk(std::max<int64_t>(kChunk / width, 1)) {}

  int64_t count() const {
    return (rows + per_chunk - 1) / per_chunk;
  }
  int64_t size(int64_t chunk) const {
    return std::min(per_chunk, rows - chunk * per_chunk);
  }
};

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& given, const at::Tensor& weight, double eps) {
    const at::Tensor x = given.contiguous();
    const RowChunks chunks(x);
    at::Tensor out = at::empty_like(x), scales = at::empty({chunks.rows}, x.options());
    const float *from = x.const_data_ptr<float>(), *factors = weight.const_data_ptr<float>();
    float *to = out.mutable_data_ptr<float>(), *found = scales.mutable_data_ptr<float>();
    vlm::parallel_ranges(chunks.count(), [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t row = chunk * chunks.per_chunk, at = row * chunks.width;
        vlm::avx512::rms_norm_forward(
            from + at, factors, chunks.size(chunk), chunks.width, static_cast<float>(eps), to + at, found + row);
      }
    });
    context->save_for_backward({x, weight, scales});
    return out;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &scales = saved[2], grad_out = grads[0].contiguous();
    const RowChunks chunks(x);
    at::Tensor grad_x = at::empty_like(x), partial;
    if (weight.requires_grad()) {
      partial = at::zeros({chunks.count(), chunks.width}, x.options());
    }
    const float *from = grad_out.const_data_ptr<float>(), *values = x.const_data_ptr<float>();
    const float *factors = weight.const_data_ptr<float>(), *found = scales.const_data_ptr<float>();
    float* to = grad_x.mutable_data_ptr<float>();
    float* sums = partial.defined() ? partial.mutable_data_ptr<float>() : nullptr;
    vlm::parallel_ranges(chunks.count(), [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t row = chunk * chunks.per_chunk, at = row * chunks.width;
        vlm::avx512::rms_norm_backward(
            from + at, values + at, factors, found + row, chunks.size(chunk), chunks.width, to + at,
            sums == nullptr ? nullptr : sums + chunk * chunks.width);
      }
    });
    return {grad_x, partial.defined() ? partial.sum(0) : at::Tensor(), at::Tensor()};
  }
};

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& given_gate, const at::Tensor& given_up) {
    const at::Tensor gate = given_gate.contiguous(), up = given_up.contiguous();
    at::Tensor out = at::empty_like(gate);
    const float *g = gate.const_data_ptr<float>(), *u = up.const_data_ptr<float>();
    float* to = out.mutable_data_ptr<float>();
    each_chunk(gate.numel(), [&](int64_t at, int64_t count) {
      vlm::avx512::swiglu_forward(g + at, u + at, count, to + at);
    });
    context->save_for_backward({gate, up});
    return out;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1], grad_out = grads[0].contiguous();
    at::Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
    const float *from = grad_out.const_data_ptr<float>(), *g = gate.const_data_ptr<float>();
    const float* u = up.const_data_ptr<float>();
    float *to_gate = grad_gate.mutable_data_ptr<float>(), *to_up = grad_up.mutable_data_ptr<float>();
    each_chunk(gate.numel(), [&](int64_t at, int64_t count) {
      vlm::avx512::swiglu_backward(from + at, g + at, u + at, count, to_gate + at, to_up + at);
    });
    return {grad_gate, grad_up};
  }

 private:
  template <typename Body>
  static void each_chunk(int64_t count, const Body& body) {
    vlm::parallel_ranges((count + kChunk - 1) / kChunk, [&](int64_t begin, int64_t end) {
      body(begin * kChunk, std::min(end * kChunk, count) - begin * kChunk);
    });
  }
};

}  // namespace

extern "C" {

// `x` [..., width], `weight` [width]. Writes an owned tensor to `out`.
int vlm_rms_norm(const at::Tensor* x, const at::Tensor* weight, double eps, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    const bool is_fused = vlm::avx512::is_available() && is_float_on_cpu(*x) && is_float_on_cpu(*weight) &&
        weight->dim() == 1 && weight->is_contiguous() && x->dim() >= 1 && x->size(-1) == weight->size(0) &&
        weight->size(0) > 0;
    *out = new at::Tensor(
        is_fused ? RmsNorm::apply(*x, *weight, eps) : at::rms_norm(*x, weight->sizes(), *weight, eps));
  });
}

// silu(gate) · up. Writes an owned tensor to `out`.
int vlm_swiglu(const at::Tensor* gate, const at::Tensor* up, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    const bool is_fused = vlm::avx512::is_available() && is_float_on_cpu(*gate) && is_float_on_cpu(*up) &&
        gate->sizes() == up->sizes();
    *out = new at::Tensor(is_fused ? SwiGlu::apply(*gate, *up) : at::silu(*gate) * *up);
  });
}
}
