// The fastest kernels of this CPU.
#pragma once

#include "kernels.h"

#include <ATen/Version.h>

#include <string>

namespace vlm {

// Null on a CPU for which there are none. As libtorch's own kernels, they are those of
// ATEN_CPU_CAPABILITY (`avx512`, `avx2` or `default`) if it is set and the CPU has them.
inline const Kernels* kernels() {
#if defined(__x86_64__)
  static const Kernels* const result = []() -> const Kernels* {
    const std::string capability = at::get_cpu_capability();
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (capability == "AVX512" && has_avx512) {
      return avx512_kernels();
    }
    return (capability == "AVX512" || capability == "AVX2") && has_avx2 ? avx2_kernels() : nullptr;
  }();
  return result;
#else
  return nullptr;
#endif
}

}  // namespace vlm
