// Activation checkpointing: an autograd node that keeps a function's inputs instead of its
// intermediate results, and calls the function again in the backward pass.
#include "guard.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <array>
#include <memory>
#include <mutex>

extern "C" {
// Takes ownership of every tensor of `inputs` and writes `num_outputs` owned tensors. Returns 0, or
// nonzero after vlm_set_error, without writing anything.
typedef int (*vlm_function)(
    void* context, at::Tensor** inputs, size_t count, at::Tensor** outputs, size_t num_outputs);
typedef void (*vlm_drop)(void* context);
const char* vlm_last_error() noexcept;
}

namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

class Closure {
 public:
  Closure(vlm_function function, vlm_drop drop, void* context, size_t num_outputs)
      : function_(function), drop_(drop), context_(context), num_outputs_(num_outputs) {}
  Closure(const Closure&) = delete;
  Closure& operator=(const Closure&) = delete;
  ~Closure() { drop_(context_); }

  variable_list operator()(const std::vector<at::Tensor>& inputs) const {
    std::vector<std::unique_ptr<at::Tensor>> owned;
    for (const auto& input : inputs) {
      owned.push_back(std::make_unique<at::Tensor>(input));
    }
    std::vector<at::Tensor*> given;
    for (auto& input : owned) {
      given.push_back(input.release());
    }
    std::vector<at::Tensor*> written(num_outputs_, nullptr);
    int status = function_(context_, given.data(), given.size(), written.data(), num_outputs_);
    TORCH_CHECK(status == 0, vlm_last_error());
    variable_list outputs;
    for (at::Tensor* output : written) {
      outputs.push_back(*std::unique_ptr<at::Tensor>(output));
    }
    return outputs;
  }

 private:
  vlm_function function_;
  vlm_drop drop_;
  void* context_;
  size_t num_outputs_;
};

constexpr std::array<c10::DeviceType, 2> kDevices = {c10::DeviceType::CPU, c10::DeviceType::CUDA};

// The autocast state of the first run, which the second run must have too, on any thread.
class AutocastState {
 public:
  AutocastState() {
    for (size_t i = 0; i < kDevices.size(); ++i) {
      enabled_[i] = at::autocast::is_autocast_enabled(kDevices[i]);
      dtype_[i] = at::autocast::get_autocast_dtype(kDevices[i]);
    }
    cache_ = at::autocast::is_autocast_cache_enabled();
  }

  void apply() const {
    for (size_t i = 0; i < kDevices.size(); ++i) {
      at::autocast::set_autocast_enabled(kDevices[i], enabled_[i]);
      at::autocast::set_autocast_dtype(kDevices[i], dtype_[i]);
    }
    at::autocast::set_autocast_cache_enabled(cache_);
  }

 private:
  std::array<bool, kDevices.size()> enabled_{};
  std::array<at::ScalarType, kDevices.size()> dtype_{};
  bool cache_ = true;
};

// Sets the autocast state for a run of the function and restores it afterwards, also when the run
// throws. The cache of cast weights is off meanwhile: otherwise later layers, which need the
// gradient of a cast, would use one that was made without gradients in the first run.
class AutocastScope {
 public:
  explicit AutocastScope(const AutocastState& wanted) {
    wanted.apply();
    at::autocast::set_autocast_cache_enabled(false);
  }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;
  ~AutocastScope() { before_.apply(); }

 private:
  AutocastState before_;
};

// The states of the random number generators, so that the second run has the same dropout.
class RandomState {
 public:
  RandomState() = default;

  // The state of the CPU's generator, and of the generator of `device` if that is a CUDA device.
  explicit RandomState(c10::Device device) {
    remember(at::detail::getDefaultCPUGenerator());
    if (device.is_cuda()) {
      remember(at::globalContext().defaultGenerator(device));
    }
  }

  void apply() const {
    for (const auto& [generator, state] : states_) {
      at::Generator target = generator;
      std::lock_guard<std::mutex> lock(target.mutex());
      target.set_state(state);
    }
  }

 private:
  void remember(at::Generator generator) {
    std::lock_guard<std::mutex> lock(generator.mutex());
    states_.emplace_back(generator, generator.get_state());
  }

  std::vector<std::pair<at::Generator, at::Tensor>> states_;
};

// Sets the generators' states for a run of the function, and restores them afterwards, so that
// later draws do not change.
class RandomScope {
 public:
  RandomScope(const RandomState& wanted, c10::Device device) : before_(device) { wanted.apply(); }
  RandomScope(const RandomScope&) = delete;
  RandomScope& operator=(const RandomScope&) = delete;
  ~RandomScope() { before_.apply(); }

 private:
  RandomState before_;
};

struct CheckpointNode : torch::autograd::Node {
  std::shared_ptr<Closure> closure;
  AutocastState autocast;
  RandomState random;
  std::vector<SavedVariable> saved;  // the inputs, then the parameters
  size_t num_inputs = 0;

  variable_list apply(variable_list&& grad_outputs) override {
    auto sources = unpack();
    at::AutoGradMode enable_grad(true);
    AutocastScope scope(autocast);
    RandomScope random_scope(random, sources[0].device());
    std::vector<at::Tensor> inputs, wanted;
    std::vector<size_t> position;
    for (size_t i = 0; i < sources.size(); ++i) {
      at::Tensor leaf = sources[i];
      if (i < num_inputs) {
        leaf = sources[i].detach();
        leaf.requires_grad_(sources[i].requires_grad());
        inputs.push_back(leaf);
      }
      if (leaf.requires_grad()) {
        wanted.push_back(leaf);
        position.push_back(i);
      }
    }
    variable_list result(sources.size());
    variable_list outputs = (*closure)(inputs), asked, given;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (grad_outputs[i].defined() && outputs[i].requires_grad()) {
        asked.push_back(outputs[i]);
        given.push_back(grad_outputs[i]);
      }
    }
    if (asked.empty()) {
      return result;
    }
    auto grads = torch::autograd::grad(
        asked, wanted, given, /*retain_graph=*/false, /*create_graph=*/false,
        /*allow_unused=*/true);
    for (size_t k = 0; k < position.size(); ++k) {
      result[position[k]] = grads[k];
    }
    return result;
  }

  std::vector<at::Tensor> unpack() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<at::Tensor> sources;
    for (auto& variable : saved) {
      sources.push_back(variable.unpack());
    }
    return sources;
  }

  // Keeps the variables without their data, so that autograd reports a second backward pass as an
  // error.
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) {
      variable.reset_data();
    }
  }
};

}  // namespace

extern "C" {

// `tensors` are `num_inputs` inputs (at least one), then the parameters. Takes ownership of
// `context`. Writes `num_outputs` owned tensors to `out`.
int vlm_checkpoint(
    at::Tensor* const* tensors, size_t count, size_t num_inputs, vlm_function function, vlm_drop drop,
    void* context, at::Tensor** out, size_t num_outputs) noexcept {
  return vlm::guard([&] {
    auto closure = std::make_shared<Closure>(function, drop, context, num_outputs);
    auto sources = vlm::borrow(tensors, count);
    TORCH_CHECK(num_inputs > 0, "a checkpointed function needs an input");
    AutocastState autocast;
    RandomState random(sources[0].device());
    variable_list outputs;
    {
      at::NoGradGuard no_grad;
      AutocastScope scope(autocast);
      std::vector<at::Tensor> inputs(sources.begin(), sources.begin() + static_cast<std::ptrdiff_t>(num_inputs));
      // Detached, because an input that the function returns unchanged would otherwise have its
      // history replaced below.
      for (const auto& output : (*closure)(inputs)) {
        outputs.push_back(output.detach());
      }
    }
    if (at::GradMode::is_enabled() && torch::autograd::any_variable_requires_grad(sources)) {
      auto node = std::shared_ptr<CheckpointNode>(new CheckpointNode(), torch::autograd::deleteNode);
      node->set_next_edges(torch::autograd::collect_next_edges(sources));
      node->closure = std::move(closure);
      node->autocast = autocast;
      node->random = random;
      node->num_inputs = num_inputs;
      for (const auto& source : sources) {
        node->saved.emplace_back(source, /*is_output=*/false);
      }
      torch::autograd::set_history(outputs, node);
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      out[i] = new at::Tensor(outputs[i]);
    }
  });
}
}
