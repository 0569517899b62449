// The linear layer, with oneDNN's float32 product where libtorch's own is slow.
//
// libtorch computes float32 products with MKL, which uses AVX2 on a CPU that is not Intel's, even
// if it has AVX-512. oneDNN, which libtorch has for its 16-bit products, uses AVX-512 on any CPU:
// 210 instead of 100 GFLOP/s on one core of a Zen 5.
#include "guard.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string_view>

namespace {

// The smallest product for oneDNN, which compiles each new shape in 0.1 to 0.5 ms: number of rows,
// and of multiplications, in the last two dimensions. The dimension of the batch does not count, so
// that the features of an image do not depend on how many images are encoded at a time.
constexpr int64_t kMinRows = 16;
constexpr int64_t kMinProduct = int64_t{1} << 20;

bool is_mkl_slow() {
#if defined(__x86_64__)
  static const bool result = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && !__builtin_cpu_is("intel");
  }();
  return result;
#else
  return false;
#endif
}

using OptionalTensor = std::optional<at::Tensor>;

// `x` [N, in], `weight` [out, in] → [N, out]. The strides are arbitrary.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  using Linear = at::Tensor(
      const at::Tensor&, const at::Tensor&, const OptionalTensor&, std::string_view,
      c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto linear = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                                 .typed<Linear>();
  return linear.call(x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

class OneDnnLinear : public torch::autograd::Function<OneDnnLinear> {
 public:
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
      const OptionalTensor& bias) {
    // Like libtorch's layer, it keeps for the backward pass only what a gradient needs.
    context->save_for_backward(
        {weight.requires_grad() ? x : at::Tensor(), x.requires_grad() ? weight : at::Tensor()});
    context->saved_data["trains_bias"] = bias.has_value() && bias->requires_grad();
    return product(x, weight, bias);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &grad = grads[0];
    at::Tensor grad_x, grad_weight, grad_bias;
    if (weight.defined()) {
      grad_x = product(grad, weight.t(), std::nullopt);
    }
    if (x.defined()) {
      grad_weight = product(grad.t(), x.t(), std::nullopt);
    }
    if (context->saved_data["trains_bias"].toBool()) {
      grad_bias = grad.sum(0);
    }
    return {grad_x, grad_weight, grad_bias};
  }
};

bool uses_onednn(const at::Tensor& x, const at::Tensor& weight) {
  auto is_float = [](const at::Tensor& t) {
    return t.device().is_cpu() && t.scalar_type() == at::kFloat;
  };
  return is_mkl_slow() && is_float(x) && is_float(weight) && weight.dim() == 2 && x.dim() >= 2 &&
      x.size(-1) == weight.size(1) && x.size(-2) >= kMinRows &&
      x.size(-2) * weight.numel() >= kMinProduct &&
      !at::autocast::is_autocast_enabled(c10::DeviceType::CPU);
}

at::Tensor onednn_linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  auto rows = OneDnnLinear::apply(x.reshape({-1, x.size(-1)}), weight, bias);
  // Not a view for autograd, as the result of libtorch's layer, so that a caller may add to it in
  // place. The result of the function in two dimensions is not used otherwise.
  return at::_unsafe_view(rows, shape);
}

}  // namespace

extern "C" {

// `bias` may be null. Writes an owned tensor to `out`.
int vlm_linear(
    const at::Tensor* x, const at::Tensor* weight, const at::Tensor* bias, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    auto optional_bias = bias == nullptr ? OptionalTensor() : OptionalTensor(*bias);
    auto result = uses_onednn(*x, *weight) ? onednn_linear(*x, *weight, optional_bias)
                                           : at::linear(*x, *weight, optional_bias);
    *out = new at::Tensor(std::move(result));
  });
}
}
