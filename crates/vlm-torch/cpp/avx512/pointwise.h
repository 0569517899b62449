// Normalisation and activation of one range of a tensor, in float32 with AVX-512: one pass over the
// memory where separate operations take several. See attention.h for what the files here may use.
#pragma once

#include <cstdint>

namespace vlm::avx512 {

// Root-mean-square normalisation of `rows` vectors of `width` elements: out = x · scale · weight,
// where scale = 1 / sqrt(mean(x²) + eps) is written to `scales` [rows].
void rms_norm_forward(
    const float* x, const float* weight, int64_t rows, int64_t width, float eps, float* out, float* scales);

// The gradient of x, written to `grad_x`, and that of the weight, added to `grad_weight` if it is not null.
void rms_norm_backward(
    const float* grad_out, const float* x, const float* weight, const float* scales, int64_t rows, int64_t width,
    float* grad_x, float* grad_weight);

// out = silu(gate) · up, where silu(x) = x / (1 + e^-x).
void swiglu_forward(const float* gate, const float* up, int64_t count, float* out);

void swiglu_backward(
    const float* grad_out, const float* gate, const float* up, int64_t count, float* grad_gate, float* grad_up);

}  // namespace vlm::avx512
