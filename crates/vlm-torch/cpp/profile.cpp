// libtorch's profiler: records the operators and spans of a thread and its backward passes.
#include "guard.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <cstdlib>
#include <memory>
#include <set>
#include <string>

namespace profiler = torch::autograd::profiler;

extern "C" {

int vlm_profiler_start(int with_cuda) noexcept {
  return vlm::guard([&] {
    using torch::profiler::impl::ActivityType;
    torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
    std::set<ActivityType> activities{ActivityType::CPU};
    if (with_cuda != 0) {
      activities.insert(ActivityType::CUDA);
    } else {
      // Kineto reads this when it is first used. It looks for GPUs in any case, and reports it as an
      // error on standard error if there is no driver.
      setenv("KINETO_LOG_LEVEL", "5", 0);
    }
    profiler::prepareProfiler(config, activities);
    profiler::enableProfiler(config, activities);
  });
}

// Ends the recording. Writes it as a Chrome trace, unless `path` is null.
int vlm_profiler_stop(const char* path) noexcept {
  return vlm::guard([&] {
    auto result = profiler::disableProfiler();
    if (path != nullptr) {
      result->save(path);
    }
  });
}

int vlm_span_begin(const char* name, at::RecordFunction** out) noexcept {
  return vlm::guard([&] {
    auto span = std::make_unique<at::RecordFunction>(at::RecordScope::USER_SCOPE);
    if (span->isActive()) {
      span->before(std::string(name));
    }
    *out = span.release();
  });
}

void vlm_span_end(at::RecordFunction* span) noexcept {
  delete span;
}
}
