// Automatic mixed precision of the current thread, for a device type and a dtype.
#include "guard.h"

#include <ATen/autocast_mode.h>

extern "C" {

// Turns autocast for a device type on (with `dtype`) or off, and writes the previous state.
int vlm_autocast_enter(
    int device_type, int enabled, int dtype, int* previous_enabled, int* previous_dtype) noexcept {
  return vlm::guard([&] {
    auto device = static_cast<c10::DeviceType>(device_type);
    *previous_enabled = at::autocast::is_autocast_enabled(device) ? 1 : 0;
    *previous_dtype = static_cast<int>(at::autocast::get_autocast_dtype(device));
    if (enabled != 0) {
      at::autocast::set_autocast_dtype(device, static_cast<c10::ScalarType>(dtype));
    }
    at::autocast::set_autocast_enabled(device, enabled != 0);
    at::autocast::increment_nesting();
  });
}

// Restores the previous state. The cache of cast weights is cleared when the outermost scope ends.
int vlm_autocast_leave(int device_type, int previous_enabled, int previous_dtype) noexcept {
  return vlm::guard([&] {
    auto device = static_cast<c10::DeviceType>(device_type);
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
    at::autocast::set_autocast_dtype(device, static_cast<c10::ScalarType>(previous_dtype));
    at::autocast::set_autocast_enabled(device, previous_enabled != 0);
  });
}

int vlm_autocast_state(int device_type, int* enabled, int* dtype) noexcept {
  return vlm::guard([&] {
    auto device = static_cast<c10::DeviceType>(device_type);
    *enabled = at::autocast::is_autocast_enabled(device) ? 1 : 0;
    *dtype = static_cast<int>(at::autocast::get_autocast_dtype(device));
  });
}
}
