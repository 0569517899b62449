// The reducer of Python's DistributedDataParallel: averages gradients over the process group in
// buckets, while the backward pass still computes others.
#include "guard.h"
#include "process_group.h"

#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <memory>
#include <numeric>

namespace {
// Times are measured in the first ten steps and in every tenth step after them.
constexpr int kMeasureEvery = 10;

// Ignores libtorch's advice to turn find_unused_parameters off, which it gives when a step uses all
// parameters: another step may not use all of them.
struct WithoutAdvice : c10::WarningHandler {
  void process(const c10::Warning& warning) override {
    if (warning.msg().find("find_unused_parameters=True") == std::string::npos) {
      c10::WarningHandler::process(warning);
    }
  }
};

struct Ddp {
  std::shared_ptr<c10d::Reducer> reducer;
  std::shared_ptr<c10d::Logger> logger;  // the reducer only refers to it weakly

  ~Ddp() {
    logger.reset();
    reducer.reset();
  }
};
}  // namespace

extern "C" {

// `names[i]` has `name_sizes[i]` bytes of UTF-8.
int vlm_reducer_new(
    vlm::Group* group, const char* const* names, const size_t* name_sizes, at::Tensor* const* params,
    size_t count, int64_t bucket_bytes, int64_t first_bucket_bytes, int find_unused, Ddp** out) noexcept {
  return vlm::guard([&] {
    auto handles = vlm::borrow(params, count);
    std::unordered_map<size_t, std::string> named;
    for (size_t i = 0; i < count; ++i) {
      named[i] = std::string(names[i], name_sizes[i]);
    }
    c10d::verify_params_across_processes(group->group, handles, std::nullopt);
    std::vector<bool> dense(count, false);
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
        handles, {static_cast<size_t>(first_bucket_bytes), static_cast<size_t>(bucket_bytes)}, dense));
    // Gradients are computed from the last layer to the first.
    std::vector<std::vector<size_t>> reversed(buckets.rbegin(), buckets.rend());
    auto ddp = std::make_unique<Ddp>();
    ddp->reducer = std::make_shared<c10d::Reducer>(
        handles, reversed, group->group, dense, bucket_bytes, find_unused != 0,
        /*gradient_as_bucket_view=*/true, named, first_bucket_bytes,
        /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, std::vector<int64_t>{});
    ddp->logger = std::make_shared<c10d::Logger>(ddp->reducer);
    ddp->reducer->set_logger(ddp->logger);
    ddp->reducer->set_ddp_runtime_logging_sample_rate(kMeasureEvery);
    ddp->logger->set_construction_data_and_log("vlm", {}, -1, false, false, false);
    *out = ddp.release();
  });
}

void vlm_reducer_free(Ddp* ddp) noexcept {
  vlm::guard([&] { delete ddp; });
}

int vlm_reducer_prepare_forward(Ddp* ddp) noexcept {
  return vlm::guard([&] {
    ddp->logger->set_runtime_stats_and_log();
    ddp->reducer->prepare_for_forward();
    ddp->reducer->rebuild_buckets();
  });
}

int vlm_reducer_prepare_backward(Ddp* ddp, const at::Tensor* loss) noexcept {
  return vlm::guard([&] {
    WithoutAdvice handler;
    c10::WarningUtils::WarningHandlerGuard guard(&handler);
    ddp->reducer->prepare_for_backward({*loss});
  });
}

// Mean times of the measured steps, in nanoseconds: forward, backward, communication, and the part
// of the communication that overlaps with the backward pass. Zero before the first measurement.
int vlm_reducer_times(Ddp* ddp, int64_t* times) noexcept {
  return vlm::guard([&] {
    auto measured = ddp->logger->get_ddp_logging_data().ints_map;
    const char* names[] = {
        "avg_forward_compute_time", "avg_backward_compute_time", "avg_backward_comm_time",
        "avg_backward_compute_comm_overlap_time"};
    for (size_t i = 0; i < 4; ++i) {
      auto found = measured.find(names[i]);
      times[i] = found == measured.end() ? 0 : found->second;
    }
  });
}

// Size of all buckets in bytes, which are summed over the ranks in each synchronised step, and
// their number.
int vlm_reducer_bucket_bytes(Ddp* ddp, int64_t* bytes, int64_t* num_buckets) noexcept {
  return vlm::guard([&] {
    auto sizes = ddp->logger->get_bucket_sizes();
    *bytes = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    *num_buckets = static_cast<int64_t>(sizes.size());
  });
}
}
