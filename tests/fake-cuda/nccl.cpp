// The NCCL plugin over Gloo, for the device of device.cpp; see README.md. It exports the functions of
// crates/vlm-torch/nccl/plugin.cpp.
//
// As with NCCL, an operation whose peers do not take part never ends, unless it is aborted.
#include "../../crates/vlm-torch/cpp/guard.h"
#include "../../crates/vlm-torch/cpp/process_group.h"
#include "streams.h"

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <thread>

namespace {

thread_local std::string last_error;

// FAKE_NCCL_FAULT: what rank `rank` does in its operation number `operation`, from 1.
struct Fault {
  std::string kind;
  int rank = -1;
  int operation = 0;

  static Fault from_environment() {
    Fault fault;
    if (const char* text = std::getenv("FAKE_NCCL_FAULT")) {
      std::istringstream words(text);
      std::getline(words, fault.kind, ':');
      char colon;
      words >> fault.rank >> colon >> fault.operation;
    }
    return fault;
  }
};

struct FakeNccl final : c10d::Backend {
  c10::intrusive_ptr<c10d::Backend> gloo;
  int device;
  long stream_id = fake::new_stream_id();
  Fault fault = Fault::from_environment();
  int num_operations = 0;
  std::atomic<bool> is_aborted{false};

  FakeNccl(int rank, int world_size, c10::intrusive_ptr<c10d::Backend> gloo, int device)
      : Backend(rank, world_size), gloo(std::move(gloo)), device(device) {}

  const std::string getBackendName() const override { return "nccl"; }
  void abort() override { is_aborted = true; }

  int stream() const { return fake::stream_of(device, stream_id); }

  // The current stream waits for `end`, as after a wait for NCCL's stream.
  struct DoneWork final : c10d::Work {
    int device;
    fake::Clock end;
    c10::intrusive_ptr<c10::ivalue::Future> future;

    bool isCompleted() override { return true; }
    bool isSuccess() const override { return true; }
    void synchronize() override {
      fake::stream_waits(fake::stream_of(device, fake::current_stream_id(device)), end);
    }
    bool wait(std::chrono::milliseconds) override {
      synchronize();
      return true;
    }
    c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future; }
  };

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

  void sleep_until_aborted() const {
    while (!is_aborted) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  void apply_fault() {
    ++num_operations;
    if (fault.rank != getRank() || num_operations != fault.operation) {
      return;
    }
    if (fault.kind == "dies") {
      raise(SIGKILL);
    }
    TORCH_CHECK(fault.kind != "fails", "NCCL error: unhandled cuda error");
    sleep_until_aborted();  // "hangs"
  }

  // Does an operation on NCCL's stream, which starts after the current stream's work so far.
  template <typename Start>
  c10::intrusive_ptr<c10d::Work> run(
      const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& outputs, Start&& start) {
    TORCH_CHECK(!is_aborted, "NCCL communicator was aborted on rank ", getRank());
    apply_fault();
    fake::stream_waits(stream(), fake::clock_of_stream(fake::stream_of(device, fake::current_stream_id(device))));
    const long before = fake::exchange_stream_id(device, stream_id);
    fake::begin_operation(device, "nccl");
    for (const auto& input : inputs) {
      fake::access(input.storage().data(), false);
    }
    for (const auto& output : outputs) {
      fake::access(output.storage().data(), true);
    }
    // In a thread of its own, because Gloo does some of its work in `wait`, and cannot be aborted.
    auto result = std::make_shared<std::atomic<int>>(0);
    std::thread([work = start(), result] {
      try {
        work->wait();
        *result = 1;
      } catch (const std::exception&) {
        *result = -1;
      }
    }).detach();
    while (*result == 0 && !is_aborted) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (*result < 0) {
      sleep_until_aborted();  // A peer has ended. The kernels of NCCL do not notice that.
    }
    auto done = c10::make_intrusive<DoneWork>();
    done->device = device;
    done->future = c10::make_intrusive<c10::ivalue::Future>(
        c10::ListType::create(c10::TensorType::get()),
        std::vector<c10::Device>{c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device))});
    done->future->markCompleted(at::IValue(outputs));
    done->end = fake::clock_of_stream(stream());
    fake::exchange_stream_id(device, before);
    return done;
  }

  c10::intrusive_ptr<c10d::Work> allreduce(
      std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    auto on_cpu = as_cpu(tensors);
    return run(tensors, tensors, [&] { return gloo->allreduce(on_cpu, options); });
  }

  c10::intrusive_ptr<c10d::Work> broadcast(
      std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    auto on_cpu = as_cpu(tensors);
    return run(tensors, tensors, [&] { return gloo->broadcast(on_cpu, options); });
  }

  c10::intrusive_ptr<c10d::Work> allgather(
      std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
      const c10d::AllgatherOptions& options) override {
    auto on_cpu = as_cpu(inputs);
    std::vector<std::vector<at::Tensor>> outputs_on_cpu;
    for (const auto& output : outputs) {
      outputs_on_cpu.push_back(as_cpu(output));
    }
    return run(inputs, outputs[0], [&] { return gloo->allgather(outputs_on_cpu, on_cpu, options); });
  }

  c10::intrusive_ptr<c10d::Work> _allgather_base(
      at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    auto from = as_cpu(input), to = as_cpu(output);
    return run({input}, {output}, [&] { return gloo->_allgather_base(to, from, options); });
  }

  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(
      at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override {
    auto from = as_cpu(input), to = as_cpu(output);
    return run({input}, {output}, [&] { return gloo->_reduce_scatter_base(to, from, options); });
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

int vlm_nccl_abort(vlm::Group* group) noexcept {
  return vlm::guard([&] { group->group->getBackend(c10::DeviceType::CUDA)->abort(); });
}

int vlm_nccl_version() noexcept {
  return 22809;
}

const char* vlm_nccl_last_error() noexcept {
  return last_error.c_str();
}
}
