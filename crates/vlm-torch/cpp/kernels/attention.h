// Attention of the queries of one row that share a key/value head.
//
// The scores of a block of queries with all keys of the row are in the cache at a time. As all keys are
// there, the backward pass needs neither the output nor the scores of the forward pass.
#pragma once

#include "product.h"

namespace {

using vlm::AttentionGrads;
using vlm::AttentionTask;
using vlm::Bf16;
using vlm::Rotary;

// Number of queries of a block, a multiple of the rows of a tile.
constexpr int64_t kBlock = 48;

inline int64_t round_up(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

inline float to_float(float x) {
  return x;
}

inline float to_float(Bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// y = x rotated by the angles of `pairs`, or back.
template <typename T>
void rotate(const T* x, const float* pairs, bool is_interleaved, bool back, int64_t head_dim, float* y) {
  if (is_interleaved) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const Vector value = load(x + d), angle = load(pairs + d);
      const Vector cosine = firsts(angle), turned = exchanged(value) * seconds(angle);
      store(y + d, back ? fma_plus_minus(value, cosine, turned) : fma_minus_plus(value, cosine, turned));
    }
    return;
  }
  const int64_t half = head_dim / 2;
  for (int64_t d = 0; d < half; ++d) {
    const float cosine = pairs[2 * d], sine = back ? -pairs[2 * d + 1] : pairs[2 * d + 1];
    const float first = to_float(x[d]), second = to_float(x[d + half]);
    y[d] = first * cosine - second * sine;
    y[d + half] = first * sine + second * cosine;
  }
}

inline void set_zero(float* data, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(data + i, fill(0));
  }
}

template <typename T>
void rotate_or_copy(const Rotary& rotary, int64_t position, const T* x, int64_t head_dim, float* y) {
  if (rotary.table == nullptr) {
    convert(x, head_dim, y);
  } else {
    rotate(x, rotary.table + position * head_dim, rotary.is_interleaved, false, head_dim, y);
  }
}

// The gradient of x from that of the rotated x, which is rotated back in its place.
template <typename T>
void store_rotated_back(const Rotary& rotary, int64_t position, float* grad, int64_t head_dim, T* to) {
  if (rotary.table != nullptr) {
    rotate(grad, rotary.table + position * head_dim, rotary.is_interleaved, true, head_dim, grad);
  }
  convert(grad, head_dim, to);
}

// The memory of a task. Rows of scores have room for one more vector than there are keys.
struct Scratch {
  int64_t stride;  // of scores and of transposed keys and values
  float *k, *v;                // [keys, D], keys rotated
  float *k_columns, *v_columns;  // [D, stride]
  float *scores, *grad_scores;   // [kBlock, stride]
  float *q, *grad_q, *out;       // [kBlock, D], queries rotated; `out` is the output or its gradient
  float *grad_k, *grad_v;        // [keys, D]

  Scratch(float* memory, int64_t num_keys, int64_t head_dim) : stride(round_up(num_keys) + kLanes) {
    auto take = [&memory](int64_t count) {
      float* taken = memory;
      memory += count;
      return taken;
    };
    k = take(stride * head_dim);
    v = take(stride * head_dim);
    k_columns = take(stride * head_dim);
    v_columns = take(stride * head_dim);
    grad_k = take(stride * head_dim);
    grad_v = take(stride * head_dim);
    scores = take(kBlock * stride);
    grad_scores = take(kBlock * stride);
    q = take(kBlock * head_dim);
    grad_q = take(kBlock * head_dim);
    out = take(kBlock * head_dim);
  }
};

template <typename T>
int64_t all_keys(const AttentionTask<T>& task) {
  return task.num_prefix_keys + task.num_keys;
}

// Columns of `rows` [count, head_dim] → [head_dim, stride], with zeros after them.
inline void transpose(const float* rows, int64_t count, int64_t head_dim, int64_t stride, float* columns) {
  for (int64_t d = 0; d < head_dim; ++d) {
    float* column = columns + d * stride;
    for (int64_t j = 0; j < count; ++j) {
      column[j] = rows[j * head_dim + d];
    }
    for (int64_t j = count; j < stride; ++j) {
      column[j] = 0;
    }
  }
}

template <typename T>
void load_keys(const AttentionTask<T>& task, Scratch& scratch) {
  const int64_t prefix = task.num_prefix_keys, dim = task.head_dim;
  for (int64_t j = 0; j < prefix; ++j) {
    rotate_or_copy(
        task.prefix_rotary, j, task.prefix_k + j * task.prefix_stride, dim, scratch.k + j * dim);
    convert(task.prefix_v + j * task.prefix_stride, dim, scratch.v + j * dim);
  }
  for (int64_t j = 0; j < task.num_keys; ++j) {
    float* k = scratch.k + (prefix + j) * dim;
    rotate_or_copy(task.rotary, task.k_positions[j], task.k + j * task.kv_stride, dim, k);
    convert(task.v + j * task.kv_stride, dim, scratch.v + (prefix + j) * dim);
  }
  transpose(scratch.k, all_keys(task), dim, scratch.stride, scratch.k_columns);
}

// Query head `head` of the queries `start` to `start + count`.
struct Block {
  int64_t head, start, count;
};

template <typename T>
int64_t offset(const AttentionTask<T>& task, const Block& block) {
  return block.start * task.q_stride + block.head * task.head_dim;
}

template <typename T>
void load_queries(const AttentionTask<T>& task, const Block& block, Scratch& scratch) {
  const T* q = task.q + offset(task, block);
  for (int64_t i = 0; i < block.count; ++i) {
    rotate_or_copy(
        task.rotary, task.q_positions[block.start + i], q + i * task.q_stride, task.head_dim,
        scratch.q + i * task.head_dim);
  }
}

// Number of keys that the queries up to `last` of a block attend to, at most.
template <typename T>
int64_t visible_to(const AttentionTask<T>& task, const Block& block, int64_t last) {
  return task.num_visible[block.start + last];
}

// scores [count, keys] = rows [count, D] columns [D, keys], for the keys that each tile of queries attends to.
template <typename T>
void multiply_by_columns(
    const AttentionTask<T>& task, const Block& block, const float* rows, int64_t row_stride, const float* columns,
    int64_t stride, float* scores) {
  for (int64_t i = 0; i < block.count; i += kTileRows) {
    const int64_t height = smaller(kTileRows, block.count - i);
    const int64_t keys = visible_to(task, block, i + height - 1);
    multiply(
        height, round_up(keys), task.head_dim, {rows + i * row_stride, row_stride, 1}, columns, stride,
        scores + i * stride, stride, false);
  }
}

// out [count, D] = scores [count, keys] rows [keys, D].
template <typename T>
void multiply_by_rows(
    const AttentionTask<T>& task, const Block& block, const float* scores, int64_t stride, const float* rows,
    float* out) {
  for (int64_t i = 0; i < block.count; i += kTileRows) {
    const int64_t height = smaller(kTileRows, block.count - i);
    const int64_t keys = visible_to(task, block, i + height - 1);
    multiply(
        height, task.head_dim, keys, {scores + i * stride, stride, 1}, rows, task.head_dim,
        out + i * task.head_dim, task.head_dim, false);
  }
}

// out [keys, D] += scoresᵀ [keys, count] rows [count, D].
template <typename T>
void add_transposed(
    const AttentionTask<T>& task, const Block& block, const float* scores, int64_t stride, const float* rows,
    int64_t row_stride, float* out) {
  const int64_t keys = visible_to(task, block, block.count - 1);
  int64_t first = 0;
  for (int64_t j = 0; j < keys; j += kTileRows) {
    while (visible_to(task, block, first) <= j) {
      ++first;
    }
    multiply(
        smaller(kTileRows, keys - j), task.head_dim, block.count - first, {scores + first * stride + j, 1, stride},
        rows + first * row_stride, row_stride, out + j * task.head_dim, task.head_dim, true);
  }
}

// Sets the scores after the first `visible` of a query to zero, as far as products read them.
inline void mask(float* scores, int64_t visible, int64_t tile_visible) {
  const int64_t at = visible / kLanes * kLanes;
  store(scores + at, load(scores + at, first_lanes(visible - at)));
  set_zero(scores + at + kLanes, round_up(tile_visible) - at);
}

template <typename T>
int64_t tile_visible(const AttentionTask<T>& task, const Block& block, int64_t i) {
  return visible_to(task, block, smaller(i / kTileRows * kTileRows + kTileRows, block.count) - 1);
}

inline float largest(const float* scores, int64_t count) {
  Vector found = fill(-__builtin_inff());
  for (int64_t j = 0; j < count; j += kLanes) {
    found = maximum(found, load(scores + j), first_lanes(count - j));
  }
  return largest_lane(found);
}

// scores = e^(scale scores - shift), and their sum.
inline float exponentials(float* scores, int64_t count, float scale, float shift) {
  Vector total = fill(0);
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vector value = exponential(fms(load(scores + j), fill(scale), fill(shift)));
    store(scores + j, value);
    total = sum(total, value, first_lanes(count - j));
  }
  return sum_of_lanes(total);
}

template <typename T>
void forward_block(const AttentionTask<T>& task, const Block& block, Scratch& scratch, T* out) {
  const int64_t dim = task.head_dim, stride = scratch.stride;
  load_queries(task, block, scratch);
  multiply_by_columns(task, block, scratch.q, dim, scratch.k_columns, stride, scratch.scores);
  float sums[kBlock];
  for (int64_t i = 0; i < block.count; ++i) {
    float* scores = scratch.scores + i * stride;
    const int64_t visible = visible_to(task, block, i);
    const float shift = largest(scores, visible) * task.scale;
    sums[i] = exponentials(scores, visible, task.scale, shift);
    mask(scores, visible, tile_visible(task, block, i));
    task.log_sums[(block.start + i) * task.log_sum_stride + block.head] = shift + __builtin_logf(sums[i]);
  }
  multiply_by_rows(task, block, scratch.scores, stride, scratch.v, scratch.out);
  for (int64_t i = 0; i < block.count; ++i) {
    const float* from = scratch.out + i * dim;
    T* to = out + offset(task, block) + i * task.q_stride;
    for (int64_t d = 0; d < dim; d += kLanes) {
      store(to + d, load(from + d) * fill(1 / sums[i]));
    }
  }
}

// Of one query: grad_scores = scale · p · (grad_p - Σ p grad_p), where `grad_scores` holds grad_p.
inline void softmax_backward(const float* p, float* grad_scores, int64_t visible, float scale) {
  Vector total = fill(0);
  for (int64_t j = 0; j < visible; j += kLanes) {
    total = fma(load(p + j), load(grad_scores + j), total);
  }
  const Vector mean = fill(sum_of_lanes(total));
  for (int64_t j = 0; j < visible; j += kLanes) {
    store(grad_scores + j, load(p + j) * fill(scale) * (load(grad_scores + j) - mean));
  }
}

template <typename T>
void backward_block(
    const AttentionTask<T>& task, const AttentionGrads<T>& grads, const Block& block, Scratch& scratch) {
  const int64_t dim = task.head_dim, stride = scratch.stride, start = offset(task, block);
  load_queries(task, block, scratch);
  for (int64_t i = 0; i < block.count; ++i) {
    convert(grads.out + start + i * task.q_stride, dim, scratch.out + i * dim);
  }
  multiply_by_columns(task, block, scratch.q, dim, scratch.k_columns, stride, scratch.scores);
  multiply_by_columns(task, block, scratch.out, dim, scratch.v_columns, stride, scratch.grad_scores);
  for (int64_t i = 0; i < block.count; ++i) {
    float *p = scratch.scores + i * stride, *grad_scores = scratch.grad_scores + i * stride;
    const int64_t visible = visible_to(task, block, i), read = tile_visible(task, block, i);
    const float log_sum = task.log_sums[(block.start + i) * task.log_sum_stride + block.head];
    exponentials(p, visible, task.scale, log_sum);
    mask(p, visible, read);
    softmax_backward(p, grad_scores, visible, task.scale);
    mask(grad_scores, visible, read);
  }
  multiply_by_rows(task, block, scratch.grad_scores, stride, scratch.k, scratch.grad_q);
  for (int64_t i = 0; i < block.count; ++i) {
    store_rotated_back(
        task.rotary, task.q_positions[block.start + i], scratch.grad_q + i * dim, dim,
        grads.q + start + i * task.q_stride);
  }
  add_transposed(task, block, scratch.scores, stride, scratch.out, dim, scratch.grad_v);
  add_transposed(task, block, scratch.grad_scores, stride, scratch.q, dim, scratch.grad_k);
}

template <typename T>
void store_key_grads(const AttentionTask<T>& task, const AttentionGrads<T>& grads, const Scratch& scratch) {
  const int64_t prefix = task.num_prefix_keys, dim = task.head_dim;
  if (grads.prefix_k != nullptr) {
    for (int64_t j = 0; j < prefix; ++j) {
      store_rotated_back(task.prefix_rotary, j, scratch.grad_k + j * dim, dim, grads.prefix_k + j * dim);
      convert(scratch.grad_v + j * dim, dim, grads.prefix_v + j * dim);
    }
  }
  for (int64_t j = 0; j < task.num_keys; ++j) {
    const int64_t from = (prefix + j) * dim, to = j * task.kv_stride;
    store_rotated_back(task.rotary, task.k_positions[j], scratch.grad_k + from, dim, grads.k + to);
    convert(scratch.grad_v + from, dim, grads.v + to);
  }
}

inline int64_t attention_scratch_size(int64_t num_keys, int64_t head_dim) {
  const int64_t stride = round_up(num_keys) + kLanes;
  return 6 * stride * head_dim + kBlock * (2 * stride + 3 * head_dim);
}

template <typename T>
void attention_forward(const AttentionTask<T>& task, T* out) {
  Scratch scratch(task.scratch, all_keys(task), task.head_dim);
  load_keys(task, scratch);
  for (int64_t head = 0; head < task.group; ++head) {
    for (int64_t start = 0; start < task.num_queries; start += kBlock) {
      forward_block(task, {head, start, smaller(kBlock, task.num_queries - start)}, scratch, out);
    }
  }
}

template <typename T>
void attention_backward(const AttentionTask<T>& task, const AttentionGrads<T>& grads) {
  Scratch scratch(task.scratch, all_keys(task), task.head_dim);
  load_keys(task, scratch);
  transpose(scratch.v, all_keys(task), task.head_dim, scratch.stride, scratch.v_columns);
  set_zero(scratch.grad_k, all_keys(task) * task.head_dim);
  set_zero(scratch.grad_v, all_keys(task) * task.head_dim);
  for (int64_t head = 0; head < task.group; ++head) {
    for (int64_t start = 0; start < task.num_queries; start += kBlock) {
      backward_block(task, grads, {head, start, smaller(kBlock, task.num_queries - start)}, scratch);
    }
  }
  store_key_grads(task, grads, scratch);
}

}  // namespace
