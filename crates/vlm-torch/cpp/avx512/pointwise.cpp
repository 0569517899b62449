#include "pointwise.h"

#ifdef __AVX512F__

#include "vector.h"

namespace vlm::avx512 {
namespace {

__m512 load(const float* from, __mmask16 lanes) {
  return _mm512_maskz_loadu_ps(lanes, from);
}

// 1 / (1 + e^-x).
__m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

}  // namespace

void rms_norm_forward(
    const float* x, const float* weight, int64_t rows, int64_t width, float eps, float* out, float* scales) {
  for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += kLanes) {
      const __m512 value = load(x + at, first_lanes(width - at));
      squares = _mm512_fmadd_ps(value, value, squares);
    }
    const float scale = 1 / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / static_cast<float>(width) + eps);
    scales[row] = scale;
    for (int64_t at = 0; at < width; at += kLanes) {
      const __mmask16 lanes = first_lanes(width - at);
      const __m512 scaled = _mm512_mul_ps(load(x + at, lanes), _mm512_set1_ps(scale));
      _mm512_mask_storeu_ps(out + at, lanes, _mm512_mul_ps(scaled, load(weight + at, lanes)));
    }
  }
}

void rms_norm_backward(
    const float* grad_out, const float* x, const float* weight, const float* scales, int64_t rows, int64_t width,
    float* grad_x, float* grad_weight) {
  for (int64_t row = 0; row < rows; ++row, grad_out += width, x += width, grad_x += width) {
    const __m512 scale = _mm512_set1_ps(scales[row]);
    __m512 products = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += kLanes) {
      const __mmask16 lanes = first_lanes(width - at);
      const __m512 grad = load(grad_out + at, lanes), value = load(x + at, lanes);
      products = _mm512_fmadd_ps(_mm512_mul_ps(grad, load(weight + at, lanes)), value, products);
      if (grad_weight != nullptr) {
        const __m512 sum = _mm512_fmadd_ps(grad, _mm512_mul_ps(value, scale), load(grad_weight + at, lanes));
        _mm512_mask_storeu_ps(grad_weight + at, lanes, sum);
      }
    }
    // d scale / d x = -scale³ x / width.
    const float mean = _mm512_reduce_add_ps(products) / static_cast<float>(width);
    const __m512 pull = _mm512_set1_ps(mean * scales[row] * scales[row]);
    for (int64_t at = 0; at < width; at += kLanes) {
      const __mmask16 lanes = first_lanes(width - at);
      const __m512 direct = _mm512_mul_ps(load(grad_out + at, lanes), load(weight + at, lanes));
      const __m512 rest = _mm512_fnmadd_ps(load(x + at, lanes), pull, direct);
      _mm512_mask_storeu_ps(grad_x + at, lanes, _mm512_mul_ps(rest, scale));
    }
  }
}

void swiglu_forward(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const __mmask16 lanes = first_lanes(count - at);
    const __m512 g = load(gate + at, lanes);
    const __m512 activated = _mm512_mul_ps(g, sigmoid(g));
    _mm512_mask_storeu_ps(out + at, lanes, _mm512_mul_ps(activated, load(up + at, lanes)));
  }
}

void swiglu_backward(
    const float* grad_out, const float* gate, const float* up, int64_t count, float* grad_gate, float* grad_up) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const __mmask16 lanes = first_lanes(count - at);
    const __m512 grad = load(grad_out + at, lanes), g = load(gate + at, lanes);
    const __m512 s = sigmoid(g), activated = _mm512_mul_ps(g, s);
    _mm512_mask_storeu_ps(grad_up + at, lanes, _mm512_mul_ps(grad, activated));
    // d (g s) / d g = s (1 + g (1 - s)) = s + g s (1 - s).
    const __m512 slope = _mm512_fmadd_ps(activated, _mm512_sub_ps(_mm512_set1_ps(1.0f), s), s);
    const __m512 of_gate = _mm512_mul_ps(grad, load(up + at, lanes));
    _mm512_mask_storeu_ps(grad_gate + at, lanes, _mm512_mul_ps(of_gate, slope));
  }
}

}  // namespace vlm::avx512

#else  // Another processor, where is_available() is false and nothing calls these.

namespace vlm::avx512 {
void rms_norm_forward(const float*, const float*, int64_t, int64_t, float, float*, float*) {
  __builtin_trap();
}
void rms_norm_backward(
    const float*, const float*, const float*, const float*, int64_t, int64_t, float*, float*) {
  __builtin_trap();
}
void swiglu_forward(const float*, const float*, int64_t, float*) {
  __builtin_trap();
}
void swiglu_backward(const float*, const float*, const float*, int64_t, float*, float*) {
  __builtin_trap();
}
}  // namespace vlm::avx512

#endif
