// Whether the functions in this folder can be called on this CPU.
#pragma once

namespace vlm::avx512 {

inline bool is_available() {
#if defined(__x86_64__)
  static const bool result = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") != 0;
  }();
  return result;
#else
  return false;
#endif
}

}  // namespace vlm::avx512
