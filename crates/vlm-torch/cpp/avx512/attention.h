// Attention of the queries of one row that share a key/value head, in float32 with AVX-512.
//
// The functions are compiled for AVX-512 and must not be called on a CPU without it. They use no
// library, so that no function that others share is compiled for AVX-512.
#pragma once

#include <cstdint>

namespace vlm::avx512 {

// Rotary position embedding: table of (cosine, sine), `head_dim / 2` pairs for each position.
// A null table means that nothing is rotated.
struct Rotary {
  const float* table;
  bool is_interleaved;  // pairs of neighbours; else of elements half a head apart
};

struct AttentionTask {
  int64_t head_dim;  // D, a multiple of 16
  int64_t group;     // G, number of query heads that share the key/value head
  int64_t num_queries;
  int64_t num_keys;
  int64_t num_prefix_keys;  // P, keys that precede the others and that all queries attend to
  float scale;

  // Query i of head g is at `q + i * q_stride + g * D`; output and gradients likewise.
  const float* q;
  int64_t q_stride;
  const float *k, *v;  // key j at `k + j * kv_stride`
  int64_t kv_stride;
  const float *prefix_k, *prefix_v;
  int64_t prefix_stride;

  // Number of keys, with the prefix's, that each query attends to; ascending.
  const int64_t* num_visible;
  // The entry of the rotary table of each query, and of each key.
  const int64_t *q_positions, *k_positions;
  Rotary rotary, prefix_rotary;

  // Logarithm of the sum of the exponentials of each query's scores: `log_sums + i * log_sum_stride + g`.
  float* log_sums;
  int64_t log_sum_stride;
  // Scratch memory of `scratch_size` floats, aligned to 64 bytes.
  float* scratch;
};

// Number of floats of scratch memory that a task with at most `num_keys` keys, with the prefix's, needs.
int64_t attention_scratch_size(int64_t num_keys, int64_t head_dim);

// Writes the output, with the strides of `q`.
void attention_forward(const AttentionTask& task, float* out);

struct AttentionGrads {
  const float* out;  // gradient of the output, with the strides of `q`
  float *q, *k, *v;  // gradients of the inputs, with their strides
  // Gradients of the prefix for this row alone, contiguous [P, D]; null if they are not needed.
  float *prefix_k, *prefix_v;
};

void attention_backward(const AttentionTask& task, const AttentionGrads& grads);

}  // namespace vlm::avx512
