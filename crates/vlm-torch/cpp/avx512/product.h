// Products of small matrices that are in the cache.
#pragma once

#include "vector.h"

namespace {

constexpr int kTileRows = 6;
constexpr int kTileVectors = 4;

// A matrix that is read element by element: element (r, c) is at `data + r * row + c * column`.
struct Elements {
  const float* data;
  int64_t row, column;
};

// C [Rows, 16 * Vectors] = A [Rows, depth] B [depth, 16 * Vectors], or added to C. The sums are in registers.
template <int Rows, int Vectors>
inline void multiply_tile(
    int64_t depth, Elements a, const float* b, int64_t b_stride, float* c, int64_t c_stride, bool adds) {
  __m512 sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      sums[r][v] = _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    __m512 columns[Vectors];
    for (int v = 0; v < Vectors; ++v) {
      columns[v] = _mm512_loadu_ps(b + k * b_stride + v * kLanes);
    }
    for (int r = 0; r < Rows; ++r) {
      const __m512 element = _mm512_set1_ps(a.data[r * a.row + k * a.column]);
      for (int v = 0; v < Vectors; ++v) {
        sums[r][v] = _mm512_fmadd_ps(element, columns[v], sums[r][v]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      float* at = c + r * c_stride + v * kLanes;
      _mm512_storeu_ps(at, adds ? _mm512_add_ps(_mm512_loadu_ps(at), sums[r][v]) : sums[r][v]);
    }
  }
}

template <int Rows>
inline void multiply_rows(
    int64_t columns, int64_t depth, Elements a, const float* b, int64_t b_stride, float* c, int64_t c_stride,
    bool adds) {
  int64_t at = 0;
  for (; at + kTileVectors * kLanes <= columns; at += kTileVectors * kLanes) {
    multiply_tile<Rows, 4>(depth, a, b + at, b_stride, c + at, c_stride, adds);
  }
  switch ((columns - at) / kLanes) {
    case 3: return multiply_tile<Rows, 3>(depth, a, b + at, b_stride, c + at, c_stride, adds);
    case 2: return multiply_tile<Rows, 2>(depth, a, b + at, b_stride, c + at, c_stride, adds);
    case 1: return multiply_tile<Rows, 1>(depth, a, b + at, b_stride, c + at, c_stride, adds);
    default: return;
  }
}

// C [rows, columns] = A [rows, depth] B [depth, columns], or added to C. At most 6 rows; `columns` is a
// multiple of 16.
void multiply(
    int64_t rows, int64_t columns, int64_t depth, Elements a, const float* b, int64_t b_stride, float* c,
    int64_t c_stride, bool adds) {
  switch (rows) {
    case 6: return multiply_rows<6>(columns, depth, a, b, b_stride, c, c_stride, adds);
    case 5: return multiply_rows<5>(columns, depth, a, b, b_stride, c, c_stride, adds);
    case 4: return multiply_rows<4>(columns, depth, a, b, b_stride, c, c_stride, adds);
    case 3: return multiply_rows<3>(columns, depth, a, b, b_stride, c, c_stride, adds);
    case 2: return multiply_rows<2>(columns, depth, a, b, b_stride, c, c_stride, adds);
    case 1: return multiply_rows<1>(columns, depth, a, b, b_stride, c, c_stride, adds);
    default: return;
  }
}

}  // namespace
