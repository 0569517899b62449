// Process-wide settings of libtorch and of the memory that it uses on the CPU.
#include "guard.h"

#include <ATen/Context.h>

#include <climits>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

extern "C" {

// By default glibc gives large blocks back to the system when they are freed, and gets them anew, as
// pages that must be cleared, in the next step.
void vlm_keep_freed_memory() noexcept {
#if defined(__GLIBC__)
  if (mallopt(M_MMAP_THRESHOLD, INT_MAX) == 0) {
    mallopt(M_MMAP_MAX, 0);  // before glibc 2.35 the threshold is limited
  }
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

// The backward pass of memory-efficient attention on CUDA has no deterministic kernel; flash attention
// and the composed one have.
int vlm_set_deterministic(int on) noexcept {
  return vlm::guard([&] {
    at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false);
    at::globalContext().setSDPUseMemEfficient(on == 0);
  });
}
}
