// Converts C++ exceptions into errors for Rust: every exported function runs its body inside
// `vlm::guard`, which turns an exception into the status -1 and a message of this thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <exception>
#include <string>
#include <vector>

namespace vlm {

// Sets the error message of this thread. Never throws: a message that cannot be stored is cleared.
void set_error(const char* message) noexcept;

template <typename Body>
int guard(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    set_error(error.what_without_backtrace());
  } catch (const std::exception& error) {
    set_error(error.what());
  } catch (...) {
    set_error("an exception that is not a std::exception");
  }
  return -1;
}

// Copies of the handles (not the data) behind an array of borrowed tensors.
inline std::vector<at::Tensor> borrow(at::Tensor* const* tensors, size_t count) {
  std::vector<at::Tensor> handles;
  handles.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    handles.push_back(*tensors[i]);
  }
  return handles;
}

}  // namespace vlm
