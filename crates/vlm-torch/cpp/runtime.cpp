// Process-wide settings of libtorch.
#include "guard.h"

#include <ATen/Context.h>

extern "C" {

// The backward pass of memory-efficient attention on CUDA has no deterministic kernel; flash attention
// and the composed one have.
int vlm_set_deterministic(int on) noexcept {
  return vlm::guard([&] {
    at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false);
    at::globalContext().setSDPUseMemEfficient(on == 0);
  });
}
}
