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

// The message of the last error. It is valid until the next call on this thread.
const char* vlm_last_error() noexcept {
  return last_error.c_str();
}

// For Rust callbacks that C++ calls: sets the message of the exception that C++ then throws.
void vlm_set_error(const char* message) noexcept {
  vlm::set_error(message);
}
}
