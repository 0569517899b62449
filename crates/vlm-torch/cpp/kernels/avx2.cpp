// The kernels for CPUs with AVX2.
#include "kernels.h"

#ifdef __AVX2__

#include "vector_avx2.h"

#include "table.h"

const vlm::Kernels* vlm::avx2_kernels() {
  return &kKernels;
}

#else

const vlm::Kernels* vlm::avx2_kernels() {
  return nullptr;
}

#endif
