// Attention within each row of a batch, with rotary position embedding, on CPUs for which there are
// kernels.
//
// libtorch's own attention on the CPU needs rows of equal length, computes its small products with
// MKL (see linear.cpp), and does not know a beginning that all rows share.
#include "element_types.h"
#include "guard.h"
#include "parallel.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/view_as_real.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

namespace {

using vlm::AttentionGrads;
using vlm::AttentionTask;

// N tokens · Q queries · P tokens of the prefix · R rows · D head width · M rotary positions
struct RowInputs {
  at::Tensor q, k, v;                // [Q, heads, D], [N, key/value heads, D]
  at::Tensor prefix_k, prefix_v;     // [P, key/value heads, D], or undefined
  at::Tensor rotations;              // [M, D / 2, 2], or undefined; token n has the entry n modulo M
  at::Tensor prefix_rotations;       // [P, D / 2, 2], or undefined
  at::Tensor tokens;                 // [Q], the ascending tokens of the queries; undefined if all
  std::vector<int64_t> starts;       // [R + 1], the first token of each row, and N
  bool is_interleaved, is_causal;
};

// The rows of a batch as tasks: one for each row and key/value head.
template <typename T>
class RowTasks {
 public:
  explicit RowTasks(const RowInputs& inputs)
      : inputs_(inputs), num_kv_heads_(inputs.k.size(1)), head_dim_(inputs.k.size(2)) {
    const int64_t num_rows = inputs.starts.size() - 1, num_tokens = inputs.starts.back();
    const int64_t num_queries = inputs.q.size(0);
    std::vector<int64_t> tokens(num_queries);
    if (inputs.tokens.defined()) {
      const int64_t* given = inputs.tokens.const_data_ptr<int64_t>();
      std::copy(given, given + num_queries, tokens.begin());
    } else {
      std::iota(tokens.begin(), tokens.end(), 0);
    }
    const int64_t num_positions = inputs.rotations.defined() ? inputs.rotations.size(0) : 1;
    for (int64_t token = 0; token < num_tokens; ++token) {
      k_positions_.push_back(token % num_positions);
    }
    num_prefix_ = inputs.prefix_k.defined() ? inputs.prefix_k.size(0) : 0;
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t start = inputs.starts[row], end = inputs.starts[row + 1];
      first_queries_.push_back(num_visible_.size());
      max_keys_ = std::max(max_keys_, num_prefix_ + end - start);
      for (size_t i = num_visible_.size(); i < tokens.size() && tokens[i] < end; ++i) {
        num_visible_.push_back(num_prefix_ + (inputs.is_causal ? tokens[i] - start + 1 : end - start));
        q_positions_.push_back(tokens[i] % num_positions);
      }
    }
    first_queries_.push_back(num_queries);
  }

  int64_t count() const {
    return (inputs_.starts.size() - 1) * num_kv_heads_;
  }

  at::Tensor scratch() const {
    return at::empty({vlm::kernels()->attention_scratch_size(max_keys_, head_dim_)}, at::kFloat);
  }

  // Where a task begins in the tensors of its row and key/value head.
  struct Offsets {
    int64_t row, head, queries, keys, group;
  };

  Offsets offsets(int64_t index) const {
    const int64_t row = index / num_kv_heads_, head = index % num_kv_heads_;
    const int64_t group = inputs_.q.size(1) / num_kv_heads_;
    return {
        row, head, (first_queries_[row] * inputs_.q.size(1) + head * group) * head_dim_,
        (inputs_.starts[row] * num_kv_heads_ + head) * head_dim_, group};
  }

  AttentionTask<T> task(int64_t index, const at::Tensor& log_sums, const at::Tensor& scratch) const {
    const Offsets at = offsets(index);
    const int64_t first = first_queries_[at.row];
    auto angles = [](const at::Tensor& tensor) {
      return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
    };
    auto of_head = [&](const at::Tensor& prefix) {
      return prefix.defined() ? vlm::data<T>(prefix) + at.head * head_dim_ : nullptr;
    };
    AttentionTask<T> task{};
    task.head_dim = head_dim_;
    task.group = at.group;
    task.num_queries = first_queries_[at.row + 1] - first;
    task.num_keys = inputs_.starts[at.row + 1] - inputs_.starts[at.row];
    task.num_prefix_keys = num_prefix_;
    task.scale = 1 / std::sqrt(static_cast<float>(head_dim_));
    task.q = vlm::data<T>(inputs_.q) + at.queries;
    task.q_stride = inputs_.q.size(1) * head_dim_;
    task.k = vlm::data<T>(inputs_.k) + at.keys;
    task.v = vlm::data<T>(inputs_.v) + at.keys;
    task.kv_stride = task.prefix_stride = num_kv_heads_ * head_dim_;
    task.prefix_k = of_head(inputs_.prefix_k);
    task.prefix_v = of_head(inputs_.prefix_v);
    task.num_visible = num_visible_.data() + first;
    task.q_positions = q_positions_.data() + first;
    task.k_positions = k_positions_.data() + inputs_.starts[at.row];
    task.rotary = {angles(inputs_.rotations), inputs_.is_interleaved};
    task.prefix_rotary = {angles(inputs_.prefix_rotations), inputs_.is_interleaved};
    task.log_sums = log_sums.mutable_data_ptr<float>() + first * inputs_.q.size(1) + at.head * at.group;
    task.log_sum_stride = inputs_.q.size(1);
    task.scratch = scratch.mutable_data_ptr<float>();
    return task;
  }

 private:
  const RowInputs& inputs_;
  int64_t num_kv_heads_, head_dim_, num_prefix_ = 0, max_keys_ = 0;
  std::vector<int64_t> first_queries_, num_visible_, q_positions_, k_positions_;
};

// The output [Q, heads, D], and the logarithms of the sums [Q, heads] for the backward pass.
std::pair<at::Tensor, at::Tensor> attend(const RowInputs& inputs) {
  at::Tensor out = at::empty_like(inputs.q);
  at::Tensor log_sums = at::empty({inputs.q.size(0), inputs.q.size(1)}, at::kFloat);
  vlm::with_element_type(inputs.q.scalar_type(), [&](auto of, const auto& kernels) {
    using T = decltype(of);
    const RowTasks<T> tasks(inputs);
    T* to = vlm::mutable_data<T>(out);
    vlm::parallel_ranges(tasks.count(), [&](int64_t begin, int64_t end) {
      const at::Tensor scratch = tasks.scratch();
      for (int64_t index = begin; index < end; ++index) {
        kernels.attention_forward(tasks.task(index, log_sums, scratch), to + tasks.offsets(index).queries);
      }
    });
  });
  return {out, log_sums};
}

struct RowGrads {
  at::Tensor q, k, v, prefix_k, prefix_v;
};

RowGrads attend_backward(
    const RowInputs& inputs, const at::Tensor& log_sums, const at::Tensor& grad_out, bool trains_prefix) {
  RowGrads grads{at::empty_like(inputs.q), at::empty_like(inputs.k), at::empty_like(inputs.v), {}, {}};
  // Of each row, [R, key/value heads, P, D].
  at::Tensor prefix_k, prefix_v;
  if (trains_prefix) {
    const int64_t num_rows = inputs.starts.size() - 1;
    const auto size = inputs.prefix_k.sizes();
    prefix_k = at::empty({num_rows, size[1], size[0], size[2]}, at::kFloat);
    prefix_v = at::empty_like(prefix_k);
  }
  const int64_t prefix_size = trains_prefix ? inputs.prefix_k.size(0) * inputs.prefix_k.size(2) : 0;
  vlm::with_element_type(inputs.q.scalar_type(), [&](auto of, const auto& kernels) {
    using T = decltype(of);
    const RowTasks<T> tasks(inputs);
    vlm::parallel_ranges(tasks.count(), [&](int64_t begin, int64_t end) {
      const at::Tensor scratch = tasks.scratch();
      for (int64_t index = begin; index < end; ++index) {
        const auto at = tasks.offsets(index);
        AttentionGrads<T> of_task{};
        of_task.out = vlm::data<T>(grad_out) + at.queries;
        of_task.q = vlm::mutable_data<T>(grads.q) + at.queries;
        of_task.k = vlm::mutable_data<T>(grads.k) + at.keys;
        of_task.v = vlm::mutable_data<T>(grads.v) + at.keys;
        if (trains_prefix) {
          of_task.prefix_k = prefix_k.mutable_data_ptr<float>() + index * prefix_size;
          of_task.prefix_v = prefix_v.mutable_data_ptr<float>() + index * prefix_size;
        }
        kernels.attention_backward(tasks.task(index, log_sums, scratch), of_task);
      }
    });
  });
  if (trains_prefix) {
    auto of_all_rows = [&](const at::Tensor& of_each) {
      return of_each.sum(0).transpose(0, 1).to(inputs.prefix_k.scalar_type());
    };
    grads.prefix_k = of_all_rows(prefix_k);
    grads.prefix_v = of_all_rows(prefix_v);
  }
  return grads;
}

class RowAttention : public torch::autograd::Function<RowAttention> {
 public:
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
      const std::optional<at::Tensor>& prefix_k, const std::optional<at::Tensor>& prefix_v,
      const RowInputs& others) {
    RowInputs inputs = others;
    inputs.q = q.contiguous();
    inputs.k = k.contiguous();
    inputs.v = v.contiguous();
    if (prefix_k.has_value()) {
      inputs.prefix_k = prefix_k->contiguous();
      inputs.prefix_v = prefix_v->contiguous();
    }
    auto [out, log_sums] = attend(inputs);
    context->save_for_backward(
        {inputs.q, inputs.k, inputs.v, inputs.prefix_k, inputs.prefix_v, inputs.rotations,
         inputs.prefix_rotations, inputs.tokens, log_sums});
    context->saved_data["starts"] = inputs.starts;
    context->saved_data["is_interleaved"] = inputs.is_interleaved;
    context->saved_data["is_causal"] = inputs.is_causal;
    context->saved_data["trains_prefix"] =
        prefix_k.has_value() && (prefix_k->requires_grad() || prefix_v->requires_grad());
    return out;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const RowInputs inputs{
        saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6], saved[7],
        context->saved_data["starts"].toIntVector(), context->saved_data["is_interleaved"].toBool(),
        context->saved_data["is_causal"].toBool()};
    const bool trains_prefix = context->saved_data["trains_prefix"].toBool();
    auto found = attend_backward(inputs, saved[8], grads[0].contiguous(), trains_prefix);
    return {found.q, found.k, found.v, found.prefix_k, found.prefix_v, at::Tensor()};
  }
};

// The kernel accesses raw memory, so everything that it relies on is checked here.
void check_rows(const RowInputs& inputs) {
  auto check = [](const at::Tensor& tensor, const char* name, at::ScalarType type, at::IntArrayRef size) {
    TORCH_CHECK(
        vlm::has_kernels(tensor, type) && tensor.sizes() == size, name, " is ", tensor.scalar_type(), tensor.sizes(),
        " on ", tensor.device(), "; expected ", type, " ", size, " on the CPU");
  };
  const auto type = inputs.q.scalar_type();
  TORCH_CHECK(
      vlm::has_kernels(inputs.q, type), "q is ", type, " on ", inputs.q.device(),
      "; expected float32 or bfloat16 on the CPU");
  TORCH_CHECK(inputs.q.dim() == 3 && inputs.k.dim() == 3, "q and k must have three dimensions");
  const int64_t num_tokens = inputs.starts.back(), num_kv_heads = inputs.k.size(1), head_dim = inputs.k.size(2);
  TORCH_CHECK(
      num_kv_heads > 0 && inputs.q.size(1) % num_kv_heads == 0, inputs.q.size(1), " heads and ", num_kv_heads,
      " key/value heads");
  TORCH_CHECK(
      inputs.starts.front() == 0 && std::is_sorted(inputs.starts.begin(), inputs.starts.end()),
      "the starts of the rows must ascend from 0");
  const int64_t num_queries = inputs.tokens.defined() ? inputs.tokens.size(0) : num_tokens;
  check(inputs.q, "q", type, {num_queries, inputs.q.size(1), head_dim});
  check(inputs.k, "k", type, {num_tokens, num_kv_heads, head_dim});
  check(inputs.v, "v", type, inputs.k.sizes());
  if (inputs.tokens.defined()) {
    TORCH_CHECK(
        inputs.tokens.scalar_type() == at::kLong && inputs.tokens.dim() == 1 && inputs.tokens.is_contiguous() &&
            inputs.tokens.device().is_cpu(),
        "the tokens of the queries must be contiguous int64 [Q] on the CPU");
    const int64_t* data = inputs.tokens.const_data_ptr<int64_t>();
    TORCH_CHECK(
        std::is_sorted(data, data + num_queries) &&
            (num_queries == 0 || (data[0] >= 0 && data[num_queries - 1] < num_tokens)),
        "the tokens of the queries must ascend and be below ", num_tokens);
  }
  if (inputs.rotations.defined()) {
    check(
        inputs.rotations, "rotations", at::kFloat, {std::max<int64_t>(inputs.rotations.size(0), 1), head_dim / 2, 2});
  }
}

void check_prefix(const RowInputs& inputs, const at::Tensor& k, const at::Tensor& v) {
  const std::vector<int64_t> expected{k.size(0), inputs.k.size(1), inputs.k.size(2)};
  TORCH_CHECK(
      vlm::has_kernels(k, inputs.k.scalar_type()) && vlm::has_kernels(v, inputs.k.scalar_type()) &&
          k.sizes() == expected && v.sizes() == expected,
      "the prefix has keys ", k.scalar_type(), k.sizes(), " and values ", v.scalar_type(), v.sizes(), "; expected ",
      inputs.k.scalar_type(), at::IntArrayRef(expected), " on the CPU");
  const bool is_rotated = inputs.rotations.defined();
  TORCH_CHECK(
      inputs.prefix_rotations.defined() == is_rotated &&
          (!is_rotated || inputs.prefix_rotations.sizes() == at::IntArrayRef({k.size(0), k.size(2) / 2, 2})),
      "the prefix must be rotated as the rows are");
}

at::Tensor angles(const at::Tensor* rotations) {
  return rotations == nullptr ? at::Tensor() : at::view_as_real(*rotations).contiguous();
}

}  // namespace

extern "C" {

int vlm_has_row_attention(int64_t head_dim) noexcept {
  return vlm::kernels() != nullptr && head_dim > 0 && head_dim % 16 == 0 ? 1 : 0;
}

// `prefix_k`, `prefix_v`, `rotations`, `prefix_rotations` and `tokens` may be null; see RowInputs. The
// rotations are complex64 [M, D / 2]. Writes an owned tensor [Q, heads, D] to `out`.
int vlm_row_attention(
    const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, const at::Tensor* prefix_k,
    const at::Tensor* prefix_v, const at::Tensor* rotations, const at::Tensor* prefix_rotations,
    const at::Tensor* tokens, const int64_t* starts, size_t num_starts, int is_interleaved, int is_causal,
    at::Tensor** out) noexcept {
  return vlm::guard([&] {
    TORCH_CHECK(num_starts > 0 && vlm_has_row_attention(k->size(-1)) != 0, "this CPU has no row attention");
    RowInputs inputs{
        *q, *k, *v, {}, {}, angles(rotations), angles(prefix_k == nullptr ? nullptr : prefix_rotations),
        tokens == nullptr ? at::Tensor() : tokens->contiguous(), {starts, starts + num_starts},
        is_interleaved != 0, is_causal != 0};
    check_rows(inputs);
    std::optional<at::Tensor> optional_k, optional_v;
    if (prefix_k != nullptr) {
      check_prefix(inputs, *prefix_k, *prefix_v);
      optional_k = *prefix_k;
      optional_v = *prefix_v;
    }
    const at::Tensor query = inputs.q, key = inputs.k, value = inputs.v;
    inputs.q = inputs.k = inputs.v = at::Tensor();
    *out = new at::Tensor(RowAttention::apply(query, key, value, optional_k, optional_v, inputs));
  });
}
}
