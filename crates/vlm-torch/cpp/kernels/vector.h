// Functions of vectors that do not depend on their length. `Vector` is that of vector_avx512.h or of
// vector_avx2.h, which is included before.
#pragma once

namespace {

// e^x to about one unit in the last place; 0 and infinity where float32 has no other number.
inline Vector exponential(Vector x) {
  // In this order of the operands the result for a NaN is NaN.
  x = minimum(fill(104.0f), maximum(fill(-104.0f), x));
  const Vector n = round_to_integer(x * fill(1.44269504f));
  // ln 2 in two parts, the first of which is exact when multiplied by n.
  Vector r = fnma(n, fill(0.693359375f), x);
  r = fnma(n, fill(-2.12194440e-4f), r);
  // The polynomial of the Cephes library, on [-ln 2 / 2, ln 2 / 2].
  Vector p = fill(1.9875691500e-4f);
  p = fma(p, r, fill(1.3981999507e-3f));
  p = fma(p, r, fill(8.3334519073e-3f));
  p = fma(p, r, fill(4.1665795894e-2f));
  p = fma(p, r, fill(1.6666665459e-1f));
  p = fma(p, r, fill(5.0000001201e-1f));
  p = fma(p, r * r, r + fill(1.0f));
  return scale_by_power(p, n);
}

// 1 / (1 + e^-x).
inline Vector sigmoid(Vector x) {
  return fill(1.0f) / (fill(1.0f) + exponential(fill(0.0f) - x));
}

// Copies `count` numbers, a multiple of the length of a vector, to another type.
template <typename From, typename To>
inline void convert(const From* from, int64_t count, To* to) {
  for (int64_t at = 0; at < count; at += kLanes) {
    store(to + at, load(from + at));
  }
}

}  // namespace
