// Vectors of 8 numbers. See vector_avx512.h for what the functions do.
#pragma once

#include "kernels.h"

#include <immintrin.h>

namespace {

using Vector = __m256;

constexpr int64_t kLanes = 8;
// There are 16 registers: 12 for sums, two for a row of the second factor, one for an element.
constexpr int kTileVectors = 2;

struct Mask {
  __m256i lanes;
  int64_t count;
};

inline Mask first_lanes(int64_t count) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int64_t kept = count < kLanes ? count : kLanes;
  return {_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(kept)), index), kept};
}

inline Vector fill(float x) {
  return _mm256_set1_ps(x);
}

inline Vector load(const float* from) {
  return _mm256_loadu_ps(from);
}

inline Vector load(const float* from, Mask mask) {
  return _mm256_maskload_ps(from, mask.lanes);
}

inline void store(float* to, Vector x) {
  _mm256_storeu_ps(to, x);
}

inline void store(float* to, Vector x, Mask mask) {
  _mm256_maskstore_ps(to, mask.lanes, x);
}

inline Vector load(const vlm::Bf16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline Vector load(const vlm::Bf16* from, Mask mask) {
  vlm::Bf16 all[kLanes] = {};
  for (int64_t i = 0; i < mask.count; ++i) {
    all[i] = from[i];
  }
  return load(all);
}

inline void store(vlm::Bf16* to, Vector x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), is_odd);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i upper = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), is_nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

inline void store(vlm::Bf16* to, Vector x, Mask mask) {
  vlm::Bf16 all[kLanes];
  store(all, x);
  for (int64_t i = 0; i < mask.count; ++i) {
    to[i] = all[i];
  }
}

inline Vector fma(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}

inline Vector fnma(Vector a, Vector b, Vector c) {
  return _mm256_fnmadd_ps(a, b, c);
}

inline Vector fms(Vector a, Vector b, Vector c) {
  return _mm256_fmsub_ps(a, b, c);
}

inline Vector minimum(Vector a, Vector b) {
  return _mm256_min_ps(a, b);
}

inline Vector maximum(Vector a, Vector b) {
  return _mm256_max_ps(a, b);
}

inline Vector maximum(Vector a, Vector b, Mask mask) {
  return _mm256_blendv_ps(a, _mm256_max_ps(a, b), _mm256_castsi256_ps(mask.lanes));
}

inline Vector sum(Vector a, Vector b, Mask mask) {
  return _mm256_blendv_ps(a, _mm256_add_ps(a, b), _mm256_castsi256_ps(mask.lanes));
}

inline float largest_lane(Vector x) {
  __m128 found = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  found = _mm_max_ps(found, _mm_movehl_ps(found, found));
  return _mm_cvtss_f32(_mm_max_ss(found, _mm_movehdup_ps(found)));
}

inline float sum_of_lanes(Vector x) {
  __m128 found = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  found = _mm_add_ps(found, _mm_movehl_ps(found, found));
  return _mm_cvtss_f32(_mm_add_ss(found, _mm_movehdup_ps(found)));
}

inline Vector round_to_integer(Vector x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// 2ⁿ for integers n between -126 and 127.
inline Vector power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

// In two steps, because 2ⁿ itself may be too large or too small for float32. |n| is at most 252.
inline Vector scale_by_power(Vector x, Vector n) {
  const __m256i all = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(all, 1);
  return x * power_of_two(half) * power_of_two(_mm256_sub_epi32(all, half));
}

inline Vector exchanged(Vector x) {
  return _mm256_permute_ps(x, 0xb1);
}

inline Vector firsts(Vector x) {
  return _mm256_moveldup_ps(x);
}

inline Vector seconds(Vector x) {
  return _mm256_movehdup_ps(x);
}

inline Vector fma_minus_plus(Vector a, Vector b, Vector c) {
  return _mm256_fmaddsub_ps(a, b, c);
}

inline Vector fma_plus_minus(Vector a, Vector b, Vector c) {
  return _mm256_fmsubadd_ps(a, b, c);
}

}  // namespace
