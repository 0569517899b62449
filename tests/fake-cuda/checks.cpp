// Checks the fake device itself: work with missing waits must be found (README.md). Takes the path of
// the library of the fake device. Prints a line for each case, and exits with 1 if one is wrong.
#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dlfcn.h>

#include <cstdio>
#include <functional>

namespace {

const c10::Device kDevice(c10::kCUDA, 0);

c10::Stream new_stream() {
  return c10::impl::VirtualGuardImpl(c10::kCUDA).getNewStream(kDevice);
}

c10::Stream current_stream() {
  return c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(kDevice);
}

at::Tensor ones() {
  return at::ones({64}, at::TensorOptions().device(kDevice));
}

at::Tensor pinned() {
  return at::empty({64}, at::TensorOptions().pinned_memory(true)).fill_(1);
}

void wait_for(const c10::Stream& stream) {
  c10::Event event(c10::kCUDA);
  event.record(stream);
  event.block(current_stream());
}

bool throws(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception&) {
    return true;
  }
  return false;
}

// A sum on another stream, with or without the waits before and after it.
bool is_refused_on_other_stream(bool waits_before, bool waits_after) {
  auto stream = new_stream();
  auto values = ones();
  return throws([&] {
    at::Tensor sum;
    auto before = current_stream();
    {
      c10::StreamGuard guard(stream);
      if (waits_before) {
        wait_for(before);
      }
      sum = values.sum();
    }
    if (waits_after) {
      wait_for(stream);
    }
    sum.record_stream(before);
    sum.add_(1);
  });
}

// Values that the host reads after a copy that does not wait.
float downloaded(bool waits) {
  auto to = pinned();
  to.copy_(ones() * 7, /*non_blocking=*/true);
  if (waits) {
    current_stream().synchronize();
  }
  return to[0].item<float>();
}

int num_failures = 0;

void expect(const char* what, bool holds) {
  std::printf("%s: %s\n", holds ? "ok" : "WRONG", what);
  num_failures += holds ? 0 : 1;
}

}  // namespace

int main(int, char** args) {
  if (dlopen(args[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  auto errors = reinterpret_cast<long (*)()>(dlsym(RTLD_DEFAULT, "_ZN4fake14finish_streamsEv"));
  auto* sync_debug_mode =
      static_cast<int*>(dlsym(RTLD_DEFAULT, "_ZZN3c104cuda13warning_stateEvE14warning_state_"));

  expect("work on two streams with both waits is allowed", !is_refused_on_other_stream(true, true));
  expect("a missing wait before the work is found", is_refused_on_other_stream(false, true));
  expect("a missing wait after the work is found", is_refused_on_other_stream(true, false));
  expect("values are there after a wait for their copy", downloaded(true) == 7);
  expect("values are not there before a wait for their copy", downloaded(false) != 7);

  long before = errors();
  {
    auto from = pinned(), to = ones();
    to.copy_(from, /*non_blocking=*/true);
    current_stream().synchronize();
    from.fill_(2);
  }
  expect("memory may be changed after a wait for its copy", errors() == before);
  {
    auto from = pinned(), to = ones();
    to.copy_(from, /*non_blocking=*/true);
    from.fill_(2);
  }
  expect("a change of memory that is being copied is found", errors() == before + 1);

  before = errors();
  auto free_while_read = [](bool records) {
    auto stream = new_stream();
    auto values = ones();
    auto before = current_stream();
    c10::StreamGuard guard(stream);
    wait_for(before);
    auto sum = values.sum();
    if (records) {
      values.record_stream(stream);
    }
    values.reset();
  };
  free_while_read(true);
  expect("a recorded block may be freed", errors() == before);
  free_while_read(false);
  expect("a block that is freed while another stream reads it is found", errors() == before + 1);

  *sync_debug_mode = 2;
  expect("a wait is an error where it is forbidden", throws([] { ones().sum().item(); }));
  *sync_debug_mode = 0;
  return num_failures == 0 ? 0 : 1;
}
