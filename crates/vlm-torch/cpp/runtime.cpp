// Process-wide switches and what the allocators count.
#include "guard.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>

namespace {
constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
}

extern "C" {

int vlm_set_deterministic(int on) noexcept {
  return vlm::guard([&] { at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false); });
}

// Through c10's registry of allocators, so that nothing of CUDA has to be linked.
int vlm_cuda_peak_bytes(int device, int64_t* bytes) noexcept {
  return vlm::guard([&] {
    auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    *bytes = stats.allocated_bytes[kAll].peak;
  });
}

int vlm_cuda_reset_peak(int device) noexcept {
  return vlm::guard([&] {
    c10::getDeviceAllocator(c10::DeviceType::CUDA)->resetPeakStats(static_cast<c10::DeviceIndex>(device));
  });
}
}
