// Vectors of 16 numbers.
#pragma once

#include "kernels.h"

#include <immintrin.h>

namespace {

using Vector = __m512;
using Mask = __mmask16;

constexpr int64_t kLanes = 16;
// Vectors of sums that a product keeps in registers for each of its rows.
constexpr int kTileVectors = 4;

// A mask of the first `count` lanes.
inline Mask first_lanes(int64_t count) {
  return count >= kLanes ? 0xffff : static_cast<Mask>((1u << count) - 1);
}

inline Vector fill(float x) {
  return _mm512_set1_ps(x);
}

inline Vector load(const float* from) {
  return _mm512_loadu_ps(from);
}

// 0 in the other lanes.
inline Vector load(const float* from, Mask lanes) {
  return _mm512_maskz_loadu_ps(lanes, from);
}

inline void store(float* to, Vector x) {
  _mm512_storeu_ps(to, x);
}

inline void store(float* to, Vector x, Mask lanes) {
  _mm512_mask_storeu_ps(to, lanes, x);
}

inline Vector from_bits(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline Vector load(const vlm::Bf16* from) {
  return from_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline Vector load(const vlm::Bf16* from, Mask lanes) {
  return from_bits(_mm256_maskz_loadu_epi16(lanes, from));
}

// Rounded to the nearest, ties to even.
inline __m256i to_bits(Vector x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), is_odd);
  const Mask is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan, _mm512_set1_epi32(0x7fc0)));
}

inline void store(vlm::Bf16* to, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bits(x));
}

inline void store(vlm::Bf16* to, Vector x, Mask lanes) {
  _mm256_mask_storeu_epi16(to, lanes, to_bits(x));
}

// a · b + c.
inline Vector fma(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}

// c - a · b.
inline Vector fnma(Vector a, Vector b, Vector c) {
  return _mm512_fnmadd_ps(a, b, c);
}

// a · b - c.
inline Vector fms(Vector a, Vector b, Vector c) {
  return _mm512_fmsub_ps(a, b, c);
}

// `b` where `a` or `b` is no number.
inline Vector minimum(Vector a, Vector b) {
  return _mm512_min_ps(a, b);
}

inline Vector maximum(Vector a, Vector b) {
  return _mm512_max_ps(a, b);
}

// `a` where `lanes` has no lane.
inline Vector maximum(Vector a, Vector b, Mask lanes) {
  return _mm512_mask_max_ps(a, lanes, a, b);
}

// a + b, and `a` where `lanes` has no lane.
inline Vector sum(Vector a, Vector b, Mask lanes) {
  return _mm512_mask_add_ps(a, lanes, a, b);
}

inline float largest_lane(Vector x) {
  return _mm512_reduce_max_ps(x);
}

inline float sum_of_lanes(Vector x) {
  return _mm512_reduce_add_ps(x);
}

inline Vector round_to_integer(Vector x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// x · 2ⁿ for integers n.
inline Vector scale_by_power(Vector x, Vector n) {
  return _mm512_scalef_ps(x, n);
}

// Neighbours exchanged; the first of each two neighbours twice; the second twice.
inline Vector exchanged(Vector x) {
  return _mm512_permute_ps(x, 0xb1);
}

inline Vector firsts(Vector x) {
  return _mm512_moveldup_ps(x);
}

inline Vector seconds(Vector x) {
  return _mm512_movehdup_ps(x);
}

// a · b - c in even lanes, a · b + c in odd ones; and the reverse.
inline Vector fma_minus_plus(Vector a, Vector b, Vector c) {
  return _mm512_fmaddsub_ps(a, b, c);
}

inline Vector fma_plus_minus(Vector a, Vector b, Vector c) {
  return _mm512_fmsubadd_ps(a, b, c);
}

}  // namespace
