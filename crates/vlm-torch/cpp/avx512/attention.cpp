// The scores of a block of queries with all keys of the row are in the cache at a time. As all keys are
// there, the backward pass needs neither the output nor the scores of the forward pass.
#include "attention.h"

#ifdef __AVX512F__

#include "product.h"

namespace vlm::avx512 {
namespace {

// Number of queries of a block, a multiple of the rows of a tile.
constexpr int64_t kBlock = 48;

int64_t round_up(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// y = x rotated by the angles of `pairs`, or back.
void rotate(const float* x, const float* pairs, bool is_interleaved, bool back, int64_t head_dim, float* y) {
  if (is_interleaved) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const __m512 value = _mm512_loadu_ps(x + d), angle = _mm512_loadu_ps(pairs + d);
      const __m512 cosine = _mm512_moveldup_ps(angle), sine = _mm512_movehdup_ps(angle);
      const __m512 turned = _mm512_mul_ps(_mm512_permute_ps(value, 0xb1), sine);
      _mm512_storeu_ps(
          y + d, back ? _mm512_fmsubadd_ps(value, cosine, turned) : _mm512_fmaddsub_ps(value, cosine, turned));
    }
    return;
  }
  const int64_t half = head_dim / 2;
  for (int64_t d = 0; d < half; ++d) {
    const float cosine = pairs[2 * d], sine = back ? -pairs[2 * d + 1] : pairs[2 * d + 1];
    const float first = x[d], second = x[d + half];
    y[d] = first * cosine - second * sine;
    y[d + half] = first * sine + second * cosine;
  }
}

void copy(const float* from, int64_t count, float* to) {
  for (int64_t d = 0; d < count; d += kLanes) {
    _mm512_storeu_ps(to + d, _mm512_loadu_ps(from + d));
  }
}

void set_zero(float* data, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    _mm512_storeu_ps(data + i, _mm512_setzero_ps());
  }
}

void rotate_or_copy(
    const Rotary& rotary, int64_t position, const float* x, int64_t head_dim, bool back, float* y) {
  if (rotary.table == nullptr) {
    copy(x, head_dim, y);
  } else {
    rotate(x, rotary.table + position * head_dim, rotary.is_interleaved, back, head_dim, y);
  }
}

// The memory of a task. Rows of scores have room for one more vector than there are keys.
struct Scratch {
  int64_t stride;  // of scores and of transposed keys and values
  float *k, *v;                // [keys, D], keys rotated
  float *k_columns, *v_columns;  // [D, stride]
  float *scores, *grad_scores;   // [kBlock, stride]
  float *q, *grad_q;             // [kBlock, D], queries rotated
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
  }
};

int64_t all_keys(const AttentionTask& task) {
  return task.num_prefix_keys + task.num_keys;
}

// Columns of `rows` [count, head_dim] → [head_dim, stride], with zeros after them.
void transpose(const float* rows, int64_t count, int64_t head_dim, int64_t stride, float* columns) {
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

void load_keys(const AttentionTask& task, Scratch& scratch) {
  const int64_t prefix = task.num_prefix_keys, dim = task.head_dim;
  for (int64_t j = 0; j < prefix; ++j) {
    rotate_or_copy(
        task.prefix_rotary, j, task.prefix_k + j * task.prefix_stride, dim, false, scratch.k + j * dim);
    copy(task.prefix_v + j * task.prefix_stride, dim, scratch.v + j * dim);
  }
  for (int64_t j = 0; j < task.num_keys; ++j) {
    float* k = scratch.k + (prefix + j) * dim;
    rotate_or_copy(task.rotary, task.k_positions[j], task.k + j * task.kv_stride, dim, false, k);
    copy(task.v + j * task.kv_stride, dim, scratch.v + (prefix + j) * dim);
  }
  transpose(scratch.k, all_keys(task), dim, scratch.stride, scratch.k_columns);
}

// Query head `head` of the queries `start` to `start + count`.
struct Block {
  int64_t head, start, count;
};

int64_t offset(const AttentionTask& task, const Block& block) {
  return block.start * task.q_stride + block.head * task.head_dim;
}

void load_queries(const AttentionTask& task, const Block& block, Scratch& scratch) {
  const float* q = task.q + offset(task, block);
  for (int64_t i = 0; i < block.count; ++i) {
    rotate_or_copy(
        task.rotary, task.q_positions[block.start + i], q + i * task.q_stride, task.head_dim, false,
        scratch.q + i * task.head_dim);
  }
}

// Number of keys that the queries up to `last` of a block attend to, at most.
int64_t visible_to(const AttentionTask& task, const Block& block, int64_t last) {
  return task.num_visible[block.start + last];
}

// scores [count, keys] = rows [count, D] columns [D, keys], for the keys that each tile of queries attends to.
void multiply_by_columns(
    const AttentionTask& task, const Block& block, const float* rows, int64_t row_stride, const float* columns,
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
void multiply_by_rows(
    const AttentionTask& task, const Block& block, const float* scores, int64_t stride, const float* rows,
    float* out, int64_t out_stride) {
  for (int64_t i = 0; i < block.count; i += kTileRows) {
    const int64_t height = smaller(kTileRows, block.count - i);
    const int64_t keys = visible_to(task, block, i + height - 1);
    multiply(
        height, task.head_dim, keys, {scores + i * stride, stride, 1}, rows, task.head_dim,
        out + i * out_stride, out_stride, false);
  }
}

// out [keys, D] += scoresᵀ [keys, count] rows [count, D].
void add_transposed(
    const AttentionTask& task, const Block& block, const float* scores, int64_t stride, const float* rows,
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
void mask(float* scores, int64_t visible, int64_t tile_visible) {
  const int64_t at = visible / kLanes * kLanes;
  const __m512 kept = _mm512_maskz_loadu_ps(first_lanes(visible - at), scores + at);
  _mm512_storeu_ps(scores + at, kept);
  set_zero(scores + at + kLanes, round_up(tile_visible) - at);
}

int64_t tile_visible(const AttentionTask& task, const Block& block, int64_t i) {
  return visible_to(task, block, smaller(i / kTileRows * kTileRows + kTileRows, block.count) - 1);
}

float largest(const float* scores, int64_t count) {
  __m512 found = _mm512_set1_ps(-__builtin_inff());
  for (int64_t j = 0; j < count; j += kLanes) {
    found = _mm512_mask_max_ps(found, first_lanes(count - j), found, _mm512_loadu_ps(scores + j));
  }
  return _mm512_reduce_max_ps(found);
}

// scores = e^(scale scores - shift), and their sum.
float exponentials(float* scores, int64_t count, float scale, float shift) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; j += kLanes) {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(scale), _mm512_set1_ps(shift));
    const __m512 value = exponential(x);
    _mm512_storeu_ps(scores + j, value);
    sum = _mm512_mask_add_ps(sum, first_lanes(count - j), sum, value);
  }
  return _mm512_reduce_add_ps(sum);
}

void forward_block(const AttentionTask& task, const Block& block, Scratch& scratch, float* out) {
  load_queries(task, block, scratch);
  multiply_by_columns(
      task, block, scratch.q, task.head_dim, scratch.k_columns, scratch.stride, scratch.scores);
  float* rows = out + offset(task, block);
  float sums[kBlock];
  for (int64_t i = 0; i < block.count; ++i) {
    float* scores = scratch.scores + i * scratch.stride;
    const int64_t visible = visible_to(task, block, i);
    const float shift = largest(scores, visible) * task.scale;
    sums[i] = exponentials(scores, visible, task.scale, shift);
    mask(scores, visible, tile_visible(task, block, i));
    task.log_sums[(block.start + i) * task.log_sum_stride + block.head] = shift + __builtin_logf(sums[i]);
  }
  multiply_by_rows(task, block, scratch.scores, scratch.stride, scratch.v, rows, task.q_stride);
  for (int64_t i = 0; i < block.count; ++i) {
    float* row = rows + i * task.q_stride;
    const __m512 factor = _mm512_set1_ps(1 / sums[i]);
    for (int64_t d = 0; d < task.head_dim; d += kLanes) {
      _mm512_storeu_ps(row + d, _mm512_mul_ps(_mm512_loadu_ps(row + d), factor));
    }
  }
}

// Of one query: grad_scores = scale · p · (grad_p - Σ p grad_p), where `grad_scores` holds grad_p.
void softmax_backward(const float* p, float* grad_scores, int64_t visible, float scale) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < visible; j += kLanes) {
    sum = _mm512_fmadd_ps(_mm512_loadu_ps(p + j), _mm512_loadu_ps(grad_scores + j), sum);
  }
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
  for (int64_t j = 0; j < visible; j += kLanes) {
    const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(grad_scores + j), mean);
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(p + j), _mm512_set1_ps(scale));
    _mm512_storeu_ps(grad_scores + j, _mm512_mul_ps(scaled, centred));
  }
}

void backward_block(
    const AttentionTask& task, const AttentionGrads& grads, const Block& block, Scratch& scratch) {
  const int64_t dim = task.head_dim, stride = scratch.stride, start = offset(task, block);
  const float* grad_out = grads.out + start;
  load_queries(task, block, scratch);
  multiply_by_columns(task, block, scratch.q, dim, scratch.k_columns, stride, scratch.scores);
  multiply_by_columns(
      task, block, grad_out, task.q_stride, scratch.v_columns, stride, scratch.grad_scores);
  for (int64_t i = 0; i < block.count; ++i) {
    float *p = scratch.scores + i * stride, *grad_scores = scratch.grad_scores + i * stride;
    const int64_t visible = visible_to(task, block, i), read = tile_visible(task, block, i);
    const float log_sum = task.log_sums[(block.start + i) * task.log_sum_stride + block.head];
    exponentials(p, visible, task.scale, log_sum);
    mask(p, visible, read);
    softmax_backward(p, grad_scores, visible, task.scale);
    mask(grad_scores, visible, read);
  }
  multiply_by_rows(task, block, scratch.grad_scores, stride, scratch.k, scratch.grad_q, dim);
  for (int64_t i = 0; i < block.count; ++i) {
    rotate_or_copy(
        task.rotary, task.q_positions[block.start + i], scratch.grad_q + i * dim, dim, true,
        grads.q + start + i * task.q_stride);
  }
  add_transposed(task, block, scratch.scores, stride, grad_out, task.q_stride, scratch.grad_v);
  add_transposed(task, block, scratch.grad_scores, stride, scratch.q, dim, scratch.grad_k);
}

void store_key_grads(const AttentionTask& task, const AttentionGrads& grads, const Scratch& scratch) {
  const int64_t prefix = task.num_prefix_keys, dim = task.head_dim;
  if (grads.prefix_k != nullptr) {
    for (int64_t j = 0; j < prefix; ++j) {
      rotate_or_copy(task.prefix_rotary, j, scratch.grad_k + j * dim, dim, true, grads.prefix_k + j * dim);
      copy(scratch.grad_v + j * dim, dim, grads.prefix_v + j * dim);
    }
  }
  for (int64_t j = 0; j < task.num_keys; ++j) {
    const int64_t from = (prefix + j) * dim, to = j * task.kv_stride;
    rotate_or_copy(task.rotary, task.k_positions[j], scratch.grad_k + from, dim, true, grads.k + to);
    copy(scratch.grad_v + from, dim, grads.v + to);
  }
}

}  // namespace

int64_t attention_scratch_size(int64_t num_keys, int64_t head_dim) {
  const int64_t stride = round_up(num_keys) + kLanes;
  return 6 * stride * head_dim + 2 * kBlock * (stride + head_dim);
}

void attention_forward(const AttentionTask& task, float* out) {
  Scratch scratch(task.scratch, all_keys(task), task.head_dim);
  load_keys(task, scratch);
  for (int64_t head = 0; head < task.group; ++head) {
    for (int64_t start = 0; start < task.num_queries; start += kBlock) {
      forward_block(task, {head, start, smaller(kBlock, task.num_queries - start)}, scratch, out);
    }
  }
}

void attention_backward(const AttentionTask& task, const AttentionGrads& grads) {
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

}  // namespace vlm::avx512

#else  // Another processor, where is_available() is false and nothing calls these.

namespace vlm::avx512 {
int64_t attention_scratch_size(int64_t, int64_t) {
  __builtin_trap();
}
void attention_forward(const AttentionTask&, float*) {
  __builtin_trap();
}
void attention_backward(const AttentionTask&, const AttentionGrads&) {
  __builtin_trap();
}
}  // namespace vlm::avx512

#endif
