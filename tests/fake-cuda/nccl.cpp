// The NCCL plugin over Gloo, for the device of device.cpp; see README.md. It exports the functions of
// crates/vlm-torch/nccl/plugin.cpp.
#include "../../crates/vlm-torch/cpp/guard.h"
#include "../../crates/vlm-torch/cpp/process_group.h"

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <string>

namespace {

thread_local std::string last_error;

// All work is done when the call returns.
struct DoneWork final : c10d::Work {
  c10::intrusive_ptr<c10::ivalue::Future> future;
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(std::chrono::milliseconds) override { return true; }
  void synchronize() override {}
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future; }
};

struct FakeNccl final : c10d::Backend {
  c10::intrusive_ptr<c10d::Backend> gloo;
  int device;

  FakeNccl(int rank, int world_size, c10::intrusive_ptr<c10d::Backend> gloo, int device)
      : Backend(rank, world_size), gloo(std::move(gloo)), device(device) {}

  const std::string getBackendName() const override { return "nccl"; }

  // A CPU tensor with the same memory, after the checks that NCCL does.
  at::Tensor as_cpu(const at::Tensor& tensor) {
    TORCH_CHECK(
        tensor.is_cuda() && tensor.device().index() == device, "NCCL of cuda:", device, " got a tensor on ",
        tensor.device());
    TORCH_CHECK(tensor.is_contiguous(), "Tensors must be contiguous");
    return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.options().device(at::kCPU));
  }

  std::vector<at::Tensor> as_cpu(const std::vector<at::Tensor>& tensors) {
    std::vector<at::Tensor> all;
    for (const auto& tensor : tensors) {
      all.push_back(as_cpu(tensor));
    }
    return all;
  }

  c10::intrusive_ptr<c10d::Work> done(const std::vector<at::Tensor>& results) {
    auto work = c10::make_intrusive<DoneWork>();
    work->future = c10::make_intrusive<c10::ivalue::Future>(
        c10::ListType::create(c10::TensorType::get()),
        std::vector<c10::Device>{c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device))});
    work->future->markCompleted(at::IValue(results));
    return work;
  }

  c10::intrusive_ptr<c10d::Work> allreduce(
      std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    auto on_cpu = as_cpu(tensors);
    gloo->allreduce(on_cpu, options)->wait();
    return done(tensors);
  }

  c10::intrusive_ptr<c10d::Work> broadcast(
      std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    auto on_cpu = as_cpu(tensors);
    gloo->broadcast(on_cpu, options)->wait();
    return done(tensors);
  }

  c10::intrusive_ptr<c10d::Work> allgather(
      std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
      const c10d::AllgatherOptions& options) override {
    auto on_cpu = as_cpu(inputs);
    std::vector<std::vector<at::Tensor>> outputs_on_cpu;
    for (const auto& output : outputs) {
      outputs_on_cpu.push_back(as_cpu(output));
    }
    gloo->allgather(outputs_on_cpu, on_cpu, options)->wait();
    return done(outputs[0]);
  }
};

}  // namespace

namespace vlm {
void set_error(const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
}
}  // namespace vlm

extern "C" {

int vlm_nccl_add(vlm::Group* group, int rank, int world_size, int device, int64_t) noexcept {
  return vlm::guard([&] {
    auto gloo = group->group->getBackend(c10::DeviceType::CPU);
    auto nccl = c10::make_intrusive<FakeNccl>(rank, world_size, gloo, device);
    group->group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, nccl);
  });
}

int vlm_nccl_shutdown(vlm::Group*) noexcept {
  return 0;
}

int vlm_nccl_version() noexcept {
  return 22809;
}

const char* vlm_nccl_last_error() noexcept {
  return last_error.c_str();
}
}
