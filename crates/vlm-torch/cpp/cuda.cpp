// CUDA functions for a program that is linked without CUDA. They use registries of c10, in which
// libtorch_cuda.so registers itself when it is loaded.
#include "guard.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <tuple>

namespace {
constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
}

extern "C" {

// Turns cuDNN's attention off. It caches its plans by exact sizes and strides, so that every new
// batch size or length takes up to half a second, and batches that are padded to their longest row
// have many lengths. Flash and memory-efficient attention have no such plans.
int vlm_cuda_prepare() noexcept {
  return vlm::guard([] { at::globalContext().setSDPUseCuDNN(false); });
}

// Sets the default device of this thread. Otherwise, the first use of CUDA creates a context on
// device 0.
int vlm_cuda_set_device(int device) noexcept {
  return vlm::guard([&] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA)
        .setDevice(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)));
  });
}

// Creates a tensor of `count` bytes in pinned memory with a copy of `data`. When it is freed, its
// memory returns to libtorch's cache, which waits for pending copies from it.
int vlm_pinned_bytes(const void* data, size_t count, at::Tensor** out) noexcept {
  return vlm::guard([&] {
    auto options = at::TensorOptions().dtype(at::kByte).pinned_memory(true);
    auto pinned = at::empty({static_cast<int64_t>(count)}, options);
    if (count > 0) {
      std::memcpy(pinned.data_ptr(), data, count);
    }
    *out = new at::Tensor(std::move(pinned));
  });
}

int vlm_cuda_peak_bytes(int device, int64_t* bytes) noexcept {
  return vlm::guard([&] {
    auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    *bytes = stats.allocated_bytes[kAll].peak;
  });
}

// Free and total memory of the device, in bytes.
int vlm_cuda_memory(int device, uint64_t* free, uint64_t* total) noexcept {
  return vlm::guard([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    std::tie(*free, *total) = allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(device));
  });
}

// Returns the memory that libtorch keeps for later tensors to the device.
int vlm_cuda_empty_cache() noexcept {
  return vlm::guard([] { c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache(); });
}

int vlm_cuda_reset_peak(int device) noexcept {
  return vlm::guard([&] {
    c10::getDeviceAllocator(c10::DeviceType::CUDA)->resetPeakStats(static_cast<c10::DeviceIndex>(device));
  });
}
}
