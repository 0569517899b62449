// The kernels for CPUs with AVX-512.
#include "kernels.h"

#ifdef __AVX512F__

#include "vector_avx512.h"

#include "table.h"

const vlm::Kernels* vlm::avx512_kernels() {
  return &kKernels;
}

#else

const vlm::Kernels* vlm::avx512_kernels() {
  return nullptr;
}

#endif
