// Gradient clipping and unscaling, and the optimizer step.
#include "guard.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_sub.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

namespace {

using Group = std::pair<c10::Device, c10::ScalarType>;

struct GroupOrder {
  bool operator()(const Group& a, const Group& b) const {
    auto key = [](const Group& g) {
      return std::make_tuple(
          static_cast<int>(g.first.type()), static_cast<int>(g.first.index()), static_cast<int>(g.second));
    };
    return key(a) < key(b);
  }
};

// Indices of tensors by device and dtype: the multi-tensor kernels take one of each per call.
using Groups = std::map<Group, std::vector<size_t>, GroupOrder>;

Groups group_by_device_and_dtype(const std::vector<at::Tensor>& tensors) {
  Groups groups;
  for (size_t i = 0; i < tensors.size(); ++i) {
    groups[{tensors[i].device(), tensors[i].scalar_type()}].push_back(i);
  }
  return groups;
}

std::vector<at::Tensor> pick(const std::vector<at::Tensor>& tensors, const std::vector<size_t>& which) {
  std::vector<at::Tensor> picked;
  picked.reserve(which.size());
  for (size_t i : which) {
    picked.push_back(tensors[i]);
  }
  return picked;
}

std::vector<at::Tensor> gradients_of(at::Tensor* const* params, size_t count) {
  std::vector<at::Tensor> grads;
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor& grad = params[i]->grad();
    if (grad.defined()) {
      grads.push_back(grad);
    }
  }
  return grads;
}

// The 2-norm over all gradients, a scalar on the first gradient's device. Norms of float16
// gradients are computed in float32, because their squares exceed the range of float16.
at::Tensor total_norm(const std::vector<at::Tensor>& grads) {
  bool any_double = std::any_of(
      grads.begin(), grads.end(), [](const at::Tensor& g) { return g.scalar_type() == at::kDouble; });
  auto dtype = any_double ? at::kDouble : at::kFloat;
  std::vector<at::Tensor> norms;
  for (const auto& [group, which] : group_by_device_and_dtype(grads)) {
    for (auto& norm : at::_foreach_norm(pick(grads, which), 2, dtype)) {
      norms.push_back(norm.to(grads[0].device()));
    }
  }
  return norms.size() == 1 ? norms[0] : at::linalg_vector_norm(at::stack(norms));
}

// The kernels access raw memory by element count, so shape, dtype and device must be the same.
void check_like(const at::Tensor& param, const at::Tensor& other, const char* what, size_t index) {
  TORCH_CHECK(
      other.sizes() == param.sizes() && other.scalar_type() == param.scalar_type() &&
          other.device() == param.device(),
      what, " ", index, " is ", other.scalar_type(), other.sizes(), " on ", other.device(),
      ", its parameter ", param.scalar_type(), param.sizes(), " on ", param.device());
}

}  // namespace

extern "C" {

// Writes the 2-norm over all gradients, a scalar on their device, or 0 if no parameter has a gradient.
int vlm_grad_norm(at::Tensor* const* params, size_t count, at::Tensor** norm) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    auto grads = gradients_of(params, count);
    *norm = new at::Tensor(grads.empty() ? at::zeros({}, at::kFloat) : total_norm(grads));
  });
}

// Scales the gradients, whose 2-norm is `norm`, to at most `max_norm`.
int vlm_clip_gradients(
    at::Tensor* const* params, size_t count, const at::Tensor* norm, double max_norm) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    auto grads = gradients_of(params, count);
    at::Tensor coefficient = norm->add(1e-6).reciprocal().mul(max_norm).clamp_max(1.0);
    for (const auto& [group, which] : group_by_device_and_dtype(grads)) {
      at::_foreach_mul_(pick(grads, which), coefficient.to(group.first, group.second));
    }
  });
}

int vlm_unscale_gradients(
    at::Tensor* const* params, size_t count, const at::Tensor* inv_scale, at::Tensor* found_inf) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    auto grads = gradients_of(params, count);
    for (const auto& [group, which] : group_by_device_and_dtype(grads)) {
      TORCH_CHECK(
          group.first == found_inf->device() && group.first == inv_scale->device(),
          "a gradient is on ", group.first, ", found_inf on ", found_inf->device(), ", inv_scale on ",
          inv_scale->device());
      at::_amp_foreach_non_finite_check_and_unscale_(pick(grads, which), *found_inf, *inv_scale);
    }
  });
}

int vlm_set_grad_none(at::Tensor* const* params, size_t count) noexcept {
  return vlm::guard([&] {
    for (size_t i = 0; i < count; ++i) {
      if (params[i]->grad().defined()) {
        params[i]->mutable_grad().reset();
      }
    }
  });
}

// `grad_scale` and `found_inf` may be null. Adds 1 to `steps`, and subtracts `found_inf` from them
// afterwards, as torch.optim.AdamW(fused=True) does.
int vlm_fused_adamw_step(
    at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
    at::Tensor* const* exp_avg_sqs, at::Tensor* const* steps, size_t count, double lr, double beta1,
    double beta2, double weight_decay, double eps, const at::Tensor* grad_scale,
    const at::Tensor* found_inf) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    auto p = vlm::borrow(params, count), g = vlm::borrow(grads, count), m = vlm::borrow(exp_avgs, count),
         v = vlm::borrow(exp_avg_sqs, count), s = vlm::borrow(steps, count);
    for (size_t i = 0; i < count; ++i) {
      check_like(p[i], g[i], "gradient", i);
      check_like(p[i], m[i], "first moment", i);
      check_like(p[i], v[i], "second moment", i);
      TORCH_CHECK(
          s[i].scalar_type() == at::kFloat && s[i].numel() == 1 && s[i].device() == p[i].device(),
          "step counter ", i, " must be one float32 on ", p[i].device());
      TORCH_CHECK(p[i].is_non_overlapping_and_dense(), "parameter ", i, " is not dense in memory");
      TORCH_CHECK(
          m[i].strides() == p[i].strides() && v[i].strides() == p[i].strides(),
          "the moments of parameter ", i, " have other strides than it");
      if (g[i].strides() != p[i].strides()) {
        g[i] = at::empty_like(p[i]).copy_(g[i]);
      }
    }
    std::optional<at::Tensor> scale, inf;
    if (grad_scale != nullptr) scale = *grad_scale;
    if (found_inf != nullptr) inf = *found_inf;
    for (const auto& [group, which] : group_by_device_and_dtype(p)) {
      auto group_steps = pick(s, which);
      at::_foreach_add_(group_steps, 1);
      at::_fused_adamw_(
          pick(p, which), pick(g, which), pick(m, which), pick(v, which), {}, group_steps, lr, beta1, beta2,
          weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, scale, inf);
      if (inf.has_value()) {
        at::_foreach_sub_(group_steps, std::vector<at::Tensor>(which.size(), *inf));
      }
    }
  });
}
}
