// Processes that find each other through a TCP store and exchange CPU tensors by Gloo.
#include "process_group.h"

#include "guard.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include <memory>

namespace {
// As DistributedDataParallel: small tensors travel together.
constexpr size_t kBroadcastBufferBytes = 250 * 1024 * 1024;
}  // namespace

extern "C" {

int vlm_group_connect(
    const char* host, uint16_t port, int rank, int world_size, int is_server, int64_t timeout_ms,
    vlm::Group** out) noexcept {
  return vlm::guard([&] {
    auto timeout = std::chrono::milliseconds(timeout_ms);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = is_server != 0;
    options.numWorkers = static_cast<size_t>(world_size);
    options.timeout = timeout;
    auto made = std::make_unique<vlm::Group>();
    made->store = c10::make_intrusive<c10d::TCPStore>(host, options);
    auto prefixed = [&](const char* prefix) {
      return c10::make_intrusive<c10d::PrefixStore>(prefix, made->store);
    };
    made->group = c10::make_intrusive<c10d::ProcessGroup>(prefixed("default"), rank, world_size);
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
        prefixed("gloo"), rank, world_size, c10d::ProcessGroupGloo::Options::create_default(timeout));
    made->group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
    made->group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    made->group->setGroupName("0");
    *out = made.release();
  });
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

int vlm_group_broadcast(vlm::Group* group, at::Tensor* const* tensors, size_t count, int root) noexcept {
  return vlm::guard([&] {
    at::NoGradGuard no_grad;
    auto handles = vlm::borrow(tensors, count);
    c10d::broadcast_coalesced(group->group, handles, kBroadcastBufferBytes, root);
  });
}

int vlm_group_barrier(vlm::Group* group) noexcept {
  return vlm::guard([&] { group->group->barrier()->wait(); });
}
}
