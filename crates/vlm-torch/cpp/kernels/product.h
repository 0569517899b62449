// Products of small matrices that are in the cache.
#pragma once

#include "vector.h"

namespace {

constexpr int kTileRows = 6;

// A matrix that is read element by element: element (r, c) is at `data + r * row + c * column`.
struct Elements {
  const float* data;
  int64_t row, column;
};

// C [Rows, Vectors · lanes] = A [Rows, depth] B [depth, Vectors · lanes], or added to C. The sums are in registers.
template <int Rows, int Vectors>
inline void multiply_tile(
    int64_t depth, Elements a, const float* b, int64_t b_stride, float* c, int64_t c_stride, bool adds) {
  Vector sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      sums[r][v] = fill(0);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector columns[Vectors];
    for (int v = 0; v < Vectors; ++v) {
      columns[v] = load(b + k * b_stride + v * kLanes);
    }
    for (int r = 0; r < Rows; ++r) {
      const Vector element = fill(a.data[r * a.row + k * a.column]);
      for (int v = 0; v < Vectors; ++v) {
        sums[r][v] = fma(element, columns[v], sums[r][v]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      float* at = c + r * c_stride + v * kLanes;
      store(at, adds ? load(at) + sums[r][v] : sums[r][v]);
    }
  }
}

template <int Rows>
inline void multiply_rows(
    int64_t columns, int64_t depth, Elements a, const float* b, int64_t b_stride, float* c, int64_t c_stride,
    bool adds) {
  int64_t at = 0;
  for (; at + kTileVectors * kLanes <= columns; at += kTileVectors * kLanes) {
    multiply_tile<Rows, kTileVectors>(depth, a, b + at, b_stride, c + at, c_stride, adds);
  }
  static_assert(kTileVectors <= 4, "the rest has at most three vectors");
  switch ((columns - at) / kLanes) {
    case 3: return multiply_tile<Rows, 3>(depth, a, b + at, b_stride, c + at, c_stride, adds);
    case 2: return multiply_tile<Rows, 2>(depth, a, b + at, b_stride, c + at, c_stride, adds);
    case 1: return multiply_tile<Rows, 1>(depth, a, b + at, b_stride, c + at, c_stride, adds);
    default: return;
  }
}

// C [rows, columns] = A [rows, depth] B [depth, columns], or added to C. At most 6 rows; `columns` is a
// multiple of the length of a vector.
inline void multiply(
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
