// Normalisation, activations and sums as one node of autograd each, on CPUs for which there are
// kernels: one pass over the memory, and fewer tensors kept for the backward pass.
#include "element_types.h"
#include "guard.h"
#include "parallel.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

namespace {

// Number of elements that a thread takes at a time, about.
constexpr int64_t kChunk = 16384;

template <typename Body>
void each_chunk(int64_t count, const Body& body) {
  vlm::parallel_ranges((count + kChunk - 1) / kChunk, [&](int64_t begin, int64_t end) {
    body(begin * kChunk, std::min(end * kChunk, count) - begin * kChunk);
  });
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
      torch::autograd::AutogradContext* context, const at::Tensor& given, const at::Tensor& weight, double eps,
      at::ScalarType out_type) {
    const at::Tensor x = given.contiguous();
    const RowChunks chunks(x);
    at::Tensor out = at::empty_like(x, x.options().dtype(out_type)), scales = at::empty({chunks.rows}, x.options());
    const float *from = x.const_data_ptr<float>(), *factors = weight.const_data_ptr<float>();
    float* found = scales.mutable_data_ptr<float>();
    vlm::with_element_type(out_type, [&](auto of, const auto& kernels) {
      auto* to = vlm::mutable_data<decltype(of)>(out);
      vlm::parallel_ranges(chunks.count(), [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          const int64_t row = chunk * chunks.per_chunk, at = row * chunks.width;
          kernels.rms_norm_forward(
              from + at, factors, chunks.size(chunk), chunks.width, static_cast<float>(eps), to + at, found + row);
        }
      });
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
    const float *values = x.const_data_ptr<float>(), *factors = weight.const_data_ptr<float>();
    const float* found = scales.const_data_ptr<float>();
    float* to = grad_x.mutable_data_ptr<float>();
    float* sums = partial.defined() ? partial.mutable_data_ptr<float>() : nullptr;
    vlm::with_element_type(grad_out.scalar_type(), [&](auto of, const auto& kernels) {
      const auto* from = vlm::data<decltype(of)>(grad_out);
      vlm::parallel_ranges(chunks.count(), [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          const int64_t row = chunk * chunks.per_chunk, at = row * chunks.width;
          kernels.rms_norm_backward(
              from + at, values + at, factors, found + row, chunks.size(chunk), chunks.width, to + at,
              sums == nullptr ? nullptr : sums + chunk * chunks.width);
        }
      });
    });
    return {grad_x, partial.defined() ? partial.sum(0) : at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& given_gate, const at::Tensor& given_up) {
    const at::Tensor gate = given_gate.contiguous(), up = given_up.contiguous();
    at::Tensor out = at::empty_like(gate);
    vlm::with_element_type(gate.scalar_type(), [&](auto of, const auto& kernels) {
      using T = decltype(of);
      const T *g = vlm::data<T>(gate), *u = vlm::data<T>(up);
      T* to = vlm::mutable_data<T>(out);
      each_chunk(gate.numel(), [&](int64_t at, int64_t count) {
        kernels.swiglu_forward(g + at, u + at, count, to + at);
      });
    });
    context->save_for_backward({gate, up});
    return out;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1], grad_out = grads[0].contiguous();
    at::Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
    vlm::with_element_type(gate.scalar_type(), [&](auto of, const auto& kernels) {
      using T = decltype(of);
      const T *from = vlm::data<T>(grad_out), *g = vlm::data<T>(gate), *u = vlm::data<T>(up);
      T *to_gate = vlm::mutable_data<T>(grad_gate), *to_up = vlm::mutable_data<T>(grad_up);
      each_chunk(gate.numel(), [&](int64_t at, int64_t count) {
        kernels.swiglu_backward(from + at, g + at, u + at, count, to_gate + at, to_up + at);
      });
    });
    return {grad_gate, grad_up};
  }
};

// The sum of float32 and a narrower type, which libtorch would first convert to a tensor of its own.
class MixedSum : public torch::autograd::Function<MixedSum> {
 public:
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& given_x, const at::Tensor& given_y) {
    const at::Tensor x = given_x.contiguous(), y = given_y.contiguous();
    at::Tensor out = at::empty_like(x);
    const float* from = x.const_data_ptr<float>();
    float* to = out.mutable_data_ptr<float>();
    vlm::with_element_type(y.scalar_type(), [&](auto of, const auto& kernels) {
      const auto* added = vlm::data<decltype(of)>(y);
      each_chunk(x.numel(), [&](int64_t at, int64_t count) { kernels.add(from + at, added + at, count, to + at); });
    });
    context->saved_data["type"] = y.scalar_type();
    return out;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list grads) {
    const auto type = context->saved_data["type"].toScalarType();
    return {grads[0], context->needs_input_grad(1) ? grads[0].to(type) : at::Tensor()};
  }
};

// Whether an activation of `x` is computed here: no gradient needs the values of `x`.
bool is_activated_in_place(const at::Tensor& x) { return vlm::has_kernels(x, x.scalar_type()) && !x.requires_grad(); }

// The values of `given` through the kernel that `choose` returns from a set of kernels; in the memory of
// `given`, if it is contiguous.
template <typename Choose>
at::Tensor activated(const at::Tensor& given, Choose choose) {
  const at::Tensor x = given.contiguous();
  vlm::with_element_type(x.scalar_type(), [&](auto of, const auto& kernels) {
    auto* data = vlm::mutable_data<decltype(of)>(x);
    const auto kernel = choose(kernels);
    each_chunk(x.numel(), [&](int64_t at, int64_t count) { kernel(data + at, count, data + at); });
  });
  return x;
}

}  // namespace

extern "C" {

// `x` [..., width], `weight` [width]. Writes an owned tensor of the type `out_type` to `out`.
int vlm_rms_norm(
    const at::Tensor* x, const at::Tensor* weight, double eps, int out_type, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    const auto type = static_cast<at::ScalarType>(out_type);
    const bool is_fused = vlm::has_kernels(*x, at::kFloat) && vlm::has_kernels(*weight, at::kFloat) &&
        vlm::has_kernels(*x, x->scalar_type(), type) && weight->dim() == 1 && weight->is_contiguous() &&
        x->dim() >= 1 && x->size(-1) == weight->size(0) && weight->size(0) > 0;
    *out = new at::Tensor(
        is_fused ? RmsNorm::apply(*x, *weight, eps, type)
                 : at::rms_norm(*x, weight->sizes(), *weight, eps).to(type));
  });
}

// silu(gate) · up. Writes an owned tensor to `out`.
int vlm_swiglu(const at::Tensor* gate, const at::Tensor* up, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    const auto type = gate->scalar_type();
    const bool is_fused = vlm::has_kernels(*gate, type) && vlm::has_kernels(*up, type) && gate->sizes() == up->sizes();
    *out = new at::Tensor(is_fused ? SwiGlu::apply(*gate, *up) : at::silu(*gate) * *up);
  });
}

// x + y, where `y` may be of a narrower type than `x`. Writes an owned tensor to `out`.
int vlm_mixed_sum(const at::Tensor* x, const at::Tensor* y, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    const bool is_fused = vlm::has_kernels(*x, at::kFloat) && vlm::has_kernels(*y, at::kBFloat16) &&
        x->sizes() == y->sizes();
    *out = new at::Tensor(is_fused ? MixedSum::apply(*x, *y) : at::add(*x, *y));
  });
}

// x · sigmoid(1.702 x); uses the memory of `x` again if no gradient needs its values. Writes an owned
// tensor to `out`.
int vlm_quick_gelu(const at::Tensor* x, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    auto kernel = [](const auto& kernels) { return kernels.quick_gelu; };
    *out = new at::Tensor(is_activated_in_place(*x) ? activated(*x, kernel) : *x * at::sigmoid(*x * 1.702));
  });
}

// The approximation of GELU with the hyperbolic tangent; memory as above.
int vlm_gelu_tanh(const at::Tensor* x, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    auto kernel = [](const auto& kernels) { return kernels.gelu_tanh; };
    at::Tensor given = *x;
    *out = new at::Tensor(
        is_activated_in_place(given) ? activated(given, kernel)
            : given.requires_grad()  ? at::gelu(given, "tanh")
                                     : at::gelu_(given, "tanh"));
  });
}
}
