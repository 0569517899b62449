// Declarations shared by device.cpp and operators.cpp: counts, memory, and the current device.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

#include <string>

namespace fake {

int num_devices();

extern thread_local c10::DeviceIndex current_device;

void count_launch(const std::string& kernel);
// Counts a place where the host waits for the device.
void count_wait(const std::string& reason);
void count_attention_shape(const std::string& shape);

c10::DeviceAllocator& device_memory();

}  // namespace fake
