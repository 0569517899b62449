// Normalisation, activation and sums.
#pragma once

#include "vector.h"

namespace {

template <typename T>
void rms_norm_forward(
    const float* x, const float* weight, int64_t rows, int64_t width, float eps, T* out, float* scales) {
  for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
    Vector squares = fill(0);
    for (int64_t at = 0; at < width; at += kLanes) {
      const Vector value = load(x + at, first_lanes(width - at));
      squares = fma(value, value, squares);
    }
    const float scale = 1 / __builtin_sqrtf(sum_of_lanes(squares) / static_cast<float>(width) + eps);
    scales[row] = scale;
    for (int64_t at = 0; at < width; at += kLanes) {
      const Mask lanes = first_lanes(width - at);
      store(out + at, load(x + at, lanes) * fill(scale) * load(weight + at, lanes), lanes);
    }
  }
}

template <typename T>
void rms_norm_backward(
    const T* grad_out, const float* x, const float* weight, const float* scales, int64_t rows, int64_t width,
    float* grad_x, float* grad_weight) {
  for (int64_t row = 0; row < rows; ++row, grad_out += width, x += width, grad_x += width) {
    const Vector scale = fill(scales[row]);
    Vector products = fill(0);
    for (int64_t at = 0; at < width; at += kLanes) {
      const Mask lanes = first_lanes(width - at);
      const Vector grad = load(grad_out + at, lanes), value = load(x + at, lanes);
      products = fma(grad * load(weight + at, lanes), value, products);
      if (grad_weight != nullptr) {
        store(grad_weight + at, fma(grad, value * scale, load(grad_weight + at, lanes)), lanes);
      }
    }
    // d scale / d x = -scale³ x / width.
    const float mean = sum_of_lanes(products) / static_cast<float>(width);
    const Vector pull = fill(mean * scales[row] * scales[row]);
    for (int64_t at = 0; at < width; at += kLanes) {
      const Mask lanes = first_lanes(width - at);
      const Vector direct = load(grad_out + at, lanes) * load(weight + at, lanes);
      store(grad_x + at, fnma(load(x + at, lanes), pull, direct) * scale, lanes);
    }
  }
}

template <typename T>
void swiglu_forward(const T* gate, const T* up, int64_t count, T* out) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const Mask lanes = first_lanes(count - at);
    const Vector g = load(gate + at, lanes);
    store(out + at, g * sigmoid(g) * load(up + at, lanes), lanes);
  }
}

template <typename T>
void swiglu_backward(const T* grad_out, const T* gate, const T* up, int64_t count, T* grad_gate, T* grad_up) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const Mask lanes = first_lanes(count - at);
    const Vector grad = load(grad_out + at, lanes), g = load(gate + at, lanes);
    const Vector s = sigmoid(g), activated = g * s;
    store(grad_up + at, grad * activated, lanes);
    // d (g s) / d g = s (1 + g (1 - s)) = s + g s (1 - s).
    const Vector slope = fma(activated, fill(1.0f) - s, s);
    store(grad_gate + at, grad * load(up + at, lanes) * slope, lanes);
  }
}

template <typename T>
void quick_gelu(const T* x, int64_t count, T* out) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const Mask lanes = first_lanes(count - at);
    const Vector value = load(x + at, lanes);
    store(out + at, value * sigmoid(value * fill(1.702f)), lanes);
  }
}

template <typename T>
void gelu_tanh(const T* x, int64_t count, T* out) {
  // (1 + tanh(u)) / 2 = sigmoid(2 u), here with u = sqrt(2 / pi) (x + 0.044715 x³).
  constexpr float kLinear = 1.5957691216057308f, kCubic = 0.044715f * kLinear;
  for (int64_t at = 0; at < count; at += kLanes) {
    const Mask lanes = first_lanes(count - at);
    const Vector value = load(x + at, lanes);
    const Vector slope = fma(value * value, fill(kCubic), fill(kLinear));
    store(out + at, value * sigmoid(value * slope), lanes);
  }
}

template <typename T>
void add(const float* x, const T* y, int64_t count, float* out) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const Mask lanes = first_lanes(count - at);
    store(out + at, load(x + at, lanes) + load(y + at, lanes), lanes);
  }
}

}  // namespace
