// Adds NCCL to a process group that was created without it.
//
// This is a separate library, because a program that links it needs CUDA. `cargo xtask setup`
// builds it where CUDA is installed, and vlm loads it after libtorch_cuda.so. It shares
// `vlm::Group` with the shim.
#include "../cpp/guard.h"
#include "../cpp/process_group.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <string>

namespace {
thread_local std::string last_error;
}

namespace vlm {
// The plugin needs its own definition, because that of the shim is hidden in the program.
void set_error(const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
}
}  // namespace vlm

extern "C" {

// Uses NCCL for CUDA tensors of `group`, on `device`. Returns 0, or -1 with a message.
int vlm_nccl_add(vlm::Group* group, int rank, int world_size, int device, int64_t timeout_ms) noexcept {
  return vlm::guard([&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    options->group_name = "0";
    auto store = c10::make_intrusive<c10d::PrefixStore>("nccl", group->store);
    auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, world_size, options);
    nccl->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
    group->group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, nccl);
  });
}

// Shuts down NCCL's communicators while all ranks are still running. At the end of the process,
// this would race with the end of rank 0's store and print a warning.
int vlm_nccl_shutdown(vlm::Group* group) noexcept {
  return vlm::guard([&] { group->group->getBackend(c10::DeviceType::CUDA)->shutdown(); });
}

// Ends all operations of NCCL, also those that wait for a rank that no longer takes part. Later
// operations fail. May be called from any thread while another one waits.
int vlm_nccl_abort(vlm::Group* group) noexcept {
  return vlm::guard([&] { group->group->getBackend(c10::DeviceType::CUDA)->abort(); });
}

// The version from ncclGetVersion, for example 21809 for 2.18.9, or 0 if it fails.
int vlm_nccl_version() noexcept {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}

// The message of the last error. It is valid until the next call on this thread.
const char* vlm_nccl_last_error() noexcept {
  return last_error.c_str();
}
}
