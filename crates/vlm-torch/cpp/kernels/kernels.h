// The arithmetic of the language model and the encoders that is not a large matrix product, for one
// range of a tensor at a time: one pass over the memory where separate operations take several.
//
// Each set of kernels is compiled for its own instructions and must not be called on a CPU without
// them. The files here use no library, and keep their functions to themselves, so that no function
// that others share is compiled for these instructions.
#pragma once

#include <cstdint>

namespace vlm {

// A number of 16 bits with the exponent of float32.
struct Bf16 {
  uint16_t bits;
};

// Rotary position embedding: table of (cosine, sine), `head_dim / 2` pairs for each position.
// A null table means that nothing is rotated.
struct Rotary {
  const float* table;
  bool is_interleaved;  // pairs of neighbours; else of elements half a head apart
};

// Attention of the queries of one row that share a key/value head.
template <typename T>
struct AttentionTask {
  int64_t head_dim;  // D, a multiple of 16
  int64_t group;     // G, number of query heads that share the key/value head
  int64_t num_queries;
  int64_t num_keys;
  int64_t num_prefix_keys;  // P, keys that precede the others and that all queries attend to
  float scale;

  // Query i of head g is at `q + i * q_stride + g * D`; output and gradients likewise.
  const T* q;
  int64_t q_stride;
  const T *k, *v;  // key j at `k + j * kv_stride`
  int64_t kv_stride;
  const T *prefix_k, *prefix_v;
  int64_t prefix_stride;

  // Number of keys, with the prefix's, that each query attends to; ascending.
  const int64_t* num_visible;
  // The entry of the rotary table of each query, and of each key.
  const int64_t *q_positions, *k_positions;
  Rotary rotary, prefix_rotary;

  // Logarithm of the sum of the exponentials of each query's scores: `log_sums + i * log_sum_stride + g`.
  float* log_sums;
  int64_t log_sum_stride;
  // Scratch memory of `attention_scratch_size` floats.
  float* scratch;
};

template <typename T>
struct AttentionGrads {
  const T* out;   // gradient of the output, with the strides of `q`
  T *q, *k, *v;   // gradients of the inputs, with their strides
  // Gradients of the prefix for this row alone, contiguous [P, D]; null if they are not needed.
  float *prefix_k, *prefix_v;
};

// Kernels for tensors of one type. All of them compute in float32.
template <typename T>
struct ElementKernels {
  // Writes the output, with the strides of `q`.
  void (*attention_forward)(const AttentionTask<T>& task, T* out);
  void (*attention_backward)(const AttentionTask<T>& task, const AttentionGrads<T>& grads);

  // Root-mean-square normalisation of `rows` vectors of `width` elements: out = x · scale · weight,
  // where scale = 1 / sqrt(mean(x²) + eps) is written to `scales` [rows].
  void (*rms_norm_forward)(
      const float* x, const float* weight, int64_t rows, int64_t width, float eps, T* out, float* scales);
  // The gradient of x, written to `grad_x`, and that of the weight, added to `grad_weight` if it is not null.
  void (*rms_norm_backward)(
      const T* grad_out, const float* x, const float* weight, const float* scales, int64_t rows, int64_t width,
      float* grad_x, float* grad_weight);

  // out = silu(gate) · up, where silu(x) = x / (1 + e^-x).
  void (*swiglu_forward)(const T* gate, const T* up, int64_t count, T* out);
  void (*swiglu_backward)(
      const T* grad_out, const T* gate, const T* up, int64_t count, T* grad_gate, T* grad_up);

  // out = x / (1 + e^(-1.702 x)). `out` may be `x`.
  void (*quick_gelu)(const T* x, int64_t count, T* out);

  // out = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) / 2. `out` may be `x`.
  void (*gelu_tanh)(const T* x, int64_t count, T* out);

  // out = x + y.
  void (*add)(const float* x, const T* y, int64_t count, float* out);
};

struct Kernels {
  // Number of floats of scratch memory that a task with at most `num_keys` keys, with the prefix's, needs.
  int64_t (*attention_scratch_size)(int64_t num_keys, int64_t head_dim);
  ElementKernels<float> of_float;
  ElementKernels<Bf16> of_bf16;
};

// Null where the program was compiled for another processor.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();

}  // namespace vlm
