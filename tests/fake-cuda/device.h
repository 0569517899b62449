// Declarations shared by the files of the fake device: counts, memory, streams, and the current device.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

#include <string>

namespace fake {

int num_devices();

extern thread_local c10::DeviceIndex current_device;

void count_launch(const std::string& kernel);
// Counts a place where the host waits for the device. An error where PyTorch's synchronisation debug mode
// forbids it.
void count_wait(const std::string& reason);
void count_attention_shape(const std::string& shape);

c10::DeviceAllocator& device_memory();

}  // namespace fake
