// A libtorch_cuda.so for machines without a GPU: counts, memory and devices. See README.md.
#include "device.h"
#include "streams.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

#include <execinfo.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

// PyTorch's synchronisation debug mode: the variable of c10::cuda::warning_state(), 2 for errors.
int sync_debug_mode asm("_ZZN3c104cuda13warning_stateEvE14warning_state_") = 0;

namespace fake {

int num_devices() {
  const char* count = std::getenv("FAKE_CUDA_DEVICES");
  return count ? std::atoi(count) : 1;
}

thread_local c10::DeviceIndex current_device = 0;

// ---- Counts -------------------------------------------------------------------------------------

namespace {

struct Counts {
  std::mutex mutex;
  std::map<std::string, long> launches;
  std::map<std::string, long> waits;
  std::set<std::string> attention_shapes;
  int64_t live_bytes = 0;
  int64_t peak_bytes = 0;
  std::map<const char*, size_t> pinned_ranges;
};

// Never destroyed, because tensors are freed while the process ends.
Counts& counts() {
  static auto* all = new Counts;
  return *all;
}

std::string json_of(const std::map<std::string, long>& counts) {
  std::ostringstream text;
  const char* separator = "";
  text << "{";
  for (const auto& [name, count] : counts) {
    text << separator << '"' << name << "\":" << count;
    separator = ",";
  }
  text << "}";
  return text.str();
}

struct ReportAtExit {
  ~ReportAtExit() {
    const char* path = std::getenv("FAKE_CUDA_REPORT");
    if (!path) {
      return;
    }
    auto& all = counts();
    std::lock_guard<std::mutex> lock(all.mutex);
    std::ofstream(path) << "{\"launches\":" << json_of(all.launches) << ",\"waits\":" << json_of(all.waits)
                        << ",\"attention_shapes\":" << all.attention_shapes.size()
                        << ",\"live_bytes\":" << all.live_bytes << ",\"peak_bytes\":" << all.peak_bytes
                        << ",\"stream_errors\":" << finish_streams() << "}\n";
  }
} report_at_exit;

}  // namespace

void count_launch(const std::string& kernel) {
  auto& all = counts();
  std::lock_guard<std::mutex> lock(all.mutex);
  ++all.launches[kernel];
}

void count_wait(const std::string& reason) {
  auto& all = counts();
  {
    std::lock_guard<std::mutex> lock(all.mutex);
    ++all.waits[reason];
  }
  if (std::getenv("FAKE_CUDA_BACKTRACE")) {
    void* frames[40];
    int count = backtrace(frames, 40);
    std::fprintf(stderr, "host wait: %s\n", reason.c_str());
    backtrace_symbols_fd(frames, count, 2);
  }
  TORCH_CHECK(sync_debug_mode != 2, "called a synchronizing CUDA operation: ", reason);
}

void count_attention_shape(const std::string& shape) {
  auto& all = counts();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.attention_shapes.insert(shape);
}

// ---- Memory -------------------------------------------------------------------------------------

namespace {

// Every block of device memory starts with its size, in a header that preserves the alignment.
constexpr size_t kHeaderBytes = 64;

struct DeviceMemory final : c10::DeviceAllocator {
  static void release(void* data) {
    char* block = static_cast<char*>(data) - kHeaderBytes;
    size_t size;
    std::memcpy(&size, block, sizeof size);
    {
      std::lock_guard<std::mutex> lock(counts().mutex);
      counts().live_bytes -= static_cast<int64_t>(size);
    }
    freed(data);
    std::memset(data, 0xff, size);
    std::free(block);
  }

  static int64_t limit() {
    static const char* given = std::getenv("FAKE_CUDA_MEMORY");
    return given ? std::atoll(given) : INT64_MAX;
  }

  c10::DataPtr allocate(size_t size) override {
    {
      std::lock_guard<std::mutex> lock(counts().mutex);
      TORCH_CHECK_WITH(
          OutOfMemoryError, counts().live_bytes + static_cast<int64_t>(size) <= limit(),
          "CUDA out of memory. Tried to allocate ", size, " bytes. GPU ", static_cast<int>(current_device),
          " has a total capacity of ", limit(), " bytes of which ", limit() - counts().live_bytes, " bytes is free.");
      counts().live_bytes += static_cast<int64_t>(size);
      counts().peak_bytes = std::max(counts().peak_bytes, counts().live_bytes);
    }
    void* block = nullptr;
    if (posix_memalign(&block, kHeaderBytes, size + kHeaderBytes) != 0) {
      throw std::bad_alloc();
    }
    std::memcpy(block, &size, sizeof size);
    char* data = static_cast<char*>(block) + kHeaderBytes;
    std::memset(data, 0xff, size);  // NaN in every floating-point type.
    allocated(current_device, data);
    return {data, data, &release, c10::Device(c10::kCUDA, current_device)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    record_stream(data.get(), stream_of(stream.device_index(), stream.id()));
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> lock(counts().mutex);
    return {static_cast<size_t>(limit() - counts().live_bytes), static_cast<size_t>(limit())};
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = counts().live_bytes;
    stats.allocated_bytes[0].peak = counts().peak_bytes;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override { counts().peak_bytes = counts().live_bytes; }
};
DeviceMemory the_device_memory;
REGISTER_ALLOCATOR(c10::kCUDA, &the_device_memory);

// Page-locked host memory: ordinary memory whose address ranges are recorded.
struct PinnedMemory final : c10::Allocator {
  static void release(void* data) {
    size_t size;
    {
      std::lock_guard<std::mutex> lock(counts().mutex);
      auto range = counts().pinned_ranges.find(static_cast<char*>(data));
      size = range->second;
      counts().pinned_ranges.erase(range);
    }
    // PyTorch's allocator reuses such memory only after the copy. Here it is never reused.
    if (!host_memory_is_used(data, size)) {
      std::free(data);
    }
  }
  static bool holds(const void* data) {
    std::lock_guard<std::mutex> lock(counts().mutex);
    auto after = counts().pinned_ranges.upper_bound(static_cast<const char*>(data));
    if (after == counts().pinned_ranges.begin()) {
      return false;
    }
    --after;
    return static_cast<const char*>(data) < after->first + after->second;
  }
  c10::DataPtr allocate(size_t size) override {
    void* data = nullptr;
    if (posix_memalign(&data, 64, size + 1) != 0) {
      throw std::bad_alloc();
    }
    std::lock_guard<std::mutex> lock(counts().mutex);
    counts().pinned_ranges[static_cast<char*>(data)] = size + 1;
    return {data, data, &release, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
};
PinnedMemory pinned_memory;

// ---- Devices and streams ------------------------------------------------------------------------

struct DeviceGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto old = current_device;
    current_device = device.index();
    return {c10::kCUDA, old};
  }
  c10::Device getDevice() const override { return {c10::kCUDA, current_device}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < num_devices(), "CUDA error: invalid device ordinal");
    current_device = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current_device = device.index(); }
  c10::Stream getStream(c10::Device device) const override {
    return stream(device, current_stream_id(with_index(device).index()));
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return stream(device, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return stream(device, new_stream_id());
  }
  c10::Stream getNewStream(c10::Device device, int) const override { return stream(device, new_stream_id()); }
  c10::Stream exchangeStream(c10::Stream next) const override {
    return stream(next.device(), exchange_stream_id(next.device_index(), next.id()));
  }
  void record(void** event, const c10::Stream& on, const c10::DeviceIndex, const c10::EventFlag) const override {
    delete clock_of(*event);
    *event = new Clock(clock_of_stream(number(on)));
  }
  void block(void* event, const c10::Stream& on) const override { stream_waits(number(on), *clock_of(event)); }
  bool queryEvent(void* event) const override { return !is_async() || host_knows(*clock_of(event)); }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete clock_of(event); }
  c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(num_devices()); }
  bool queryStream(const c10::Stream& on) const override {
    return !is_async() || host_knows(clock_of_stream(number(on)));
  }
  void synchronizeStream(const c10::Stream& on) const override {
    count_wait("stream synchronize");
    host_waits(clock_of_stream(number(on)));
  }
  void synchronizeEvent(void* event) const override {
    count_wait("event synchronize");
    host_waits(*clock_of(event));
  }
  void synchronizeDevice(const c10::DeviceIndex) const override {
    count_wait("device synchronize");
    finish_streams();
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& on) const override {
    record_stream(data.get(), number(on));
  }
  double elapsedTime(void*, void*, const c10::DeviceIndex) const override { return 1; }

 private:
  c10::Device with_index(c10::Device device) const { return device.has_index() ? device : getDevice(); }
  c10::Stream stream(c10::Device device, long id) const {
    return c10::Stream(c10::Stream::UNSAFE, with_index(device), id);
  }
  static int number(const c10::Stream& stream) { return stream_of(stream.device_index(), stream.id()); }
  static Clock* clock_of(void* event) { return static_cast<Clock*>(event); }
};
C10_REGISTER_GUARD_IMPL(CUDA, DeviceGuard);

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(num_devices()); }
  int getNumGPUs() const override { return num_devices(); }
  c10::DeviceIndex current_device() const override { return fake::current_device; }
  c10::DeviceIndex getCurrentDevice() const override { return fake::current_device; }
  void setCurrentDevice(c10::DeviceIndex device) const override { fake::current_device = device; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return std::exchange(fake::current_device, device);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return std::exchange(fake::current_device, device);
  }
  bool isPinnedPtr(const void* data) const override { return PinnedMemory::holds(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  c10::Allocator* getCUDADeviceAllocator() const override { return &the_device_memory; }
  void deviceSynchronize(c10::DeviceIndex) const override { count_wait("device synchronize"); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(5);
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<at::CPUGeneratorImpl>(5);
  }
};
const bool hooks_are_registered = [] {
  at::CUDAHooksRegistry()->Register("CUDAHooks", [](at::CUDAHooksArgs args) -> std::unique_ptr<at::CUDAHooksInterface> {
    return std::make_unique<Hooks>(args);
  });
  return true;
}();

// The gradient reducer measures times with events of the device.
struct ReducerTimer final : c10d::Timer {
  explicit ReducerTimer(c10::Device) {}
  std::optional<int64_t> measureDifference(Event, Event) override {
    count_wait("timer of the gradient reducer");
    return 1000;
  }
};
const bool timer_is_registered = [] {
  c10d::TimerRegistry()->Register(c10::kCUDA, [](c10::Device device) -> std::unique_ptr<c10d::Timer> {
    return std::make_unique<ReducerTimer>(device);
  });
  return true;
}();

}  // namespace

c10::DeviceAllocator& device_memory() {
  return the_device_memory;
}

}  // namespace fake

// The function of the CUDA runtime that vlm calls directly. Processes that see one device each get the
// same address, unless FAKE_CUDA_BUS differs between them.
extern "C" int cudaDeviceGetPCIBusId(char* text, int size, int device) {
  const char* bus = std::getenv("FAKE_CUDA_BUS");
  std::snprintf(text, static_cast<size_t>(size), "0000:%s%d:00.0", bus ? bus : "0", device);
  return 0;
}
