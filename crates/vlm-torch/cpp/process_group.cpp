// Process groups that connect through a TCP store and exchange CPU tensors with Gloo.
#include "process_group.h"

#include "guard.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include <cstdlib>
#include <memory>
#include <mutex>

namespace {
// Turns off libtorch's flight recorder, a record of the last collectives of the whole process. A
// group's first collective is recorded without a lock, so that two groups in two threads would
// crash. This project does not read the record; a user who needs it can set TORCH_FR_BUFFER_SIZE.
void without_flight_recorder() {
  static std::once_flag once;
  std::call_once(once, [] { setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0); });
}

// Small tensors are sent together, in buffers of the same size as in DistributedDataParallel.
constexpr size_t kBroadcastBufferBytes = 250 * 1024 * 1024;

c10::intrusive_ptr<c10d::ProcessGroupGloo::Options> gloo_options(
    std::chrono::milliseconds timeout, const char* address) {
  if (address == nullptr) {
    return c10d::ProcessGroupGloo::Options::create_default(timeout);
  }
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
  return options;
}
}  // namespace

extern "C" {

// `prefix` separates the keys of this attempt from those of an earlier one in the same store.
// `address` is the address of this machine to which other ranks connect; if it is null, libtorch
// chooses one.
int vlm_group_connect(
    const char* host, uint16_t port, int rank, int world_size, int is_server, int64_t timeout_ms,
    const char* prefix, const char* address, vlm::Group** out) noexcept {
  return vlm::guard([&] {
    without_flight_recorder();
    auto timeout = std::chrono::milliseconds(timeout_ms);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = is_server != 0;
    options.numWorkers = static_cast<size_t>(world_size);
    options.timeout = timeout;
    auto made = std::make_unique<vlm::Group>();
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    made->store = c10::make_intrusive<c10d::PrefixStore>(prefix, store);
    auto prefixed = [&](const char* name) {
      return c10::make_intrusive<c10d::PrefixStore>(name, made->store);
    };
    made->group = c10::make_intrusive<c10d::ProcessGroup>(prefixed("default"), rank, world_size);
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
        prefixed("gloo"), rank, world_size, gloo_options(timeout, address));
    made->group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
    made->group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    made->group->setGroupName("0");
    *out = made.release();
  });
}

// Another handle of the same group.
int vlm_group_share(const vlm::Group* group, vlm::Group** out) noexcept {
  return vlm::guard([&] { *out = new vlm::Group(*group); });
}

void vlm_group_free(vlm::Group* group) noexcept {
  vlm::guard([&] { delete group; });
}

int vlm_group_all_reduce_sum(vlm::Group* group, at::Tensor* tensor) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{*tensor};
    group->group->allreduce(tensors)->wait();
  });
}

// `outputs[r]` receives rank r's `input`.
int vlm_group_all_gather(
    vlm::Group* group, at::Tensor* input, at::Tensor* const* outputs, size_t count) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> inputs{*input};
    std::vector<std::vector<at::Tensor>> gathered{vlm::borrow(outputs, count)};
    group->group->allgather(gathered, inputs)->wait();
  });
}

// `input` has the tensors of all ranks one after another; `output` receives the sum of this rank's.
int vlm_group_reduce_scatter_sum(vlm::Group* group, at::Tensor* input, at::Tensor* output) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    group->group->_reduce_scatter_base(*output, *input, c10d::ReduceScatterOptions())->wait();
  });
}

// `output` receives the `input` of all ranks, one after another.
int vlm_group_all_gather_into(vlm::Group* group, at::Tensor* input, at::Tensor* output) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    group->group->_allgather_base(*output, *input, c10d::AllgatherOptions())->wait();
  });
}

int vlm_group_broadcast(vlm::Group* group, at::Tensor* const* tensors, size_t count, int root) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    auto handles = vlm::borrow(tensors, count);
    c10d::broadcast_coalesced(group->group, handles, kBroadcastBufferBytes, root);
  });
}

// Always uses the CPU's backend, because processes wait for each other and not devices. It is
// called directly, because ProcessGroup::barrier writes to a tensor that all groups of the process
// share.
int vlm_group_barrier(vlm::Group* group) noexcept {
  return vlm::guard([&] {
    group->group->getBackend(c10::DeviceType::CPU)->barrier(c10d::BarrierOptions())->wait();
  });
}
}
