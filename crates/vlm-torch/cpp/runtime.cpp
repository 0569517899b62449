// Process-wide settings of libtorch.
#include "guard.h"

#include <ATen/Context.h>

extern "C" {

int vlm_set_deterministic(int on) noexcept {
  return vlm::guard([&] { at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false); });
}
}
