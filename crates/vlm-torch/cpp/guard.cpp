#include "guard.h"

namespace {
thread_local std::string last_error;
}

namespace vlm {
void set_error(const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
}
}  // namespace vlm

extern "C" {

// Valid until the next call on this thread.
const char* vlm_last_error() noexcept {
  return last_error.c_str();
}

// For Rust callbacks that C++ calls: what they say here is what the exception will say.
void vlm_set_error(const char* message) noexcept {
  vlm::set_error(message);
}
}
