// The order of operations on streams, by vector clocks. See streams.h.
#include "streams.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fake {
namespace {

struct Stream {
  long number = 0;
  Clock after;
};

// An operation: its stream, its number there, and its name for messages.
struct Operation {
  int stream = 0;
  long number = 0;
  std::string name;
};

struct Block {
  int stream = 0;
  Operation write;
  std::map<int, Operation> reads;
  std::set<int> recorded;
};

// A copy from page-locked memory that may not be complete.
struct Upload {
  Operation operation;
  const void* from;
  size_t size, hash;
};

// A copy to page-locked memory that may not be complete, with the values that it will write.
struct Download {
  Operation operation;
  void* to;
  std::vector<char> values;
};

struct State {
  std::mutex mutex;
  std::map<int, Stream> streams;
  Clock host;
  std::unordered_map<const void*, Block> blocks;
  std::list<Upload> uploads;
  std::list<Download> downloads;
  long violations = 0;
  long last_stream_id = 0;
};

// Never destroyed, because tensors are freed while the process ends.
State& state() {
  static auto* all = new State;
  return *all;
}

constexpr int kMaxDevices = 16;
thread_local long current_ids[kMaxDevices] = {};
thread_local Operation current;

// Streams of a device, in the numbers that are unique among all devices.
constexpr int kStreamsPerDevice = 10000;

void merge(Clock& into, const Clock& other) {
  for (const auto& [stream, number] : other) {
    long& known = into[stream];
    known = known < number ? number : known;
  }
}

bool knows(const Clock& clock, const Operation& operation) {
  auto found = clock.find(operation.stream);
  return operation.number == 0 || (found != clock.end() && found->second >= operation.number);
}

// Whether an operation of `stream` that starts now starts after `operation` is complete.
bool is_before(const Operation& operation, int stream) {
  return operation.stream == stream || knows(state().streams[stream].after, operation);
}

size_t hash_of(const void* data, size_t size) {
  return std::hash<std::string_view>()({static_cast<const char*>(data), size});
}

std::string violation(const std::string& message) {
  ++state().violations;
  std::fprintf(stderr, "fake CUDA: %s\n", message.c_str());
  return "fake CUDA: " + message;
}

std::string named(const Operation& operation) {
  return operation.name + " on stream " + std::to_string(operation.stream % kStreamsPerDevice);
}

// Completes the copies that the host has waited for.
void settle() {
  auto& all = state();
  all.uploads.remove_if([&](const Upload& upload) {
    if (!knows(all.host, upload.operation)) {
      return false;
    }
    if (hash_of(upload.from, upload.size) != upload.hash) {
      violation("page-locked memory was changed before " + named(upload.operation) + " had copied it");
    }
    return true;
  });
  all.downloads.remove_if([&](const Download& download) {
    if (!knows(all.host, download.operation)) {
      return false;
    }
    std::memcpy(download.to, download.values.data(), download.values.size());
    return true;
  });
}

}  // namespace

bool is_async() {
  static const bool on = std::getenv("FAKE_CUDA_ASYNC") != nullptr;
  return on;
}

int stream_of(int device, long id) {
  return device * kStreamsPerDevice + static_cast<int>(id);
}

long current_stream_id(int device) {
  return current_ids[device];
}

long exchange_stream_id(int device, long id) {
  return std::exchange(current_ids[device], id);
}

long new_stream_id() {
  std::lock_guard<std::mutex> lock(state().mutex);
  return ++state().last_stream_id;
}

void begin_operation(int device, const std::string& name) {
  if (!is_async()) {
    return;
  }
  auto& all = state();
  std::lock_guard<std::mutex> lock(all.mutex);
  int number = stream_of(device, current_ids[device]);
  auto& stream = all.streams[number];
  merge(stream.after, all.host);
  current = {number, ++stream.number, name};
}

void access(const void* block, bool writes) {
  if (!is_async() || block == nullptr) {
    return;
  }
  auto& all = state();
  std::lock_guard<std::mutex> lock(all.mutex);
  auto found = all.blocks.find(block);
  if (found == all.blocks.end()) {
    return;
  }
  auto& used = found->second;
  if (!is_before(used.write, current.stream)) {
    throw std::runtime_error(violation(
        named(current) + (writes ? " writes" : " reads") + " memory that " + named(used.write) +
        " writes, without waiting for it"));
  }
  if (!writes) {
    used.reads[current.stream] = current;
    return;
  }
  for (const auto& [stream, read] : used.reads) {
    if (!is_before(read, current.stream)) {
      throw std::runtime_error(violation(
          named(current) + " writes memory that " + named(read) + " reads, without waiting for it"));
    }
  }
  used.reads.clear();
  used.write = current;
}

void reads_host_later(const void* from, size_t size) {
  if (is_async()) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().uploads.push_back({current, from, size, hash_of(from, size)});
  }
}

void writes_host_later(void* to, const void* values, size_t size) {
  if (!is_async()) {
    std::memcpy(to, values, size);
    return;
  }
  std::lock_guard<std::mutex> lock(state().mutex);
  const char* bytes = static_cast<const char*>(values);
  state().downloads.push_back({current, to, {bytes, bytes + size}});
  std::memset(to, 0xff, size);  // NaN in every floating-point type.
}

Clock clock_of_stream(int stream) {
  auto& all = state();
  std::lock_guard<std::mutex> lock(all.mutex);
  auto& found = all.streams[stream];
  Clock clock = found.after;
  clock[stream] = found.number;
  return clock;
}

void stream_waits(int stream, const Clock& clock) {
  std::lock_guard<std::mutex> lock(state().mutex);
  merge(state().streams[stream].after, clock);
}

void host_waits(const Clock& clock) {
  std::lock_guard<std::mutex> lock(state().mutex);
  merge(state().host, clock);
  settle();
}

bool host_knows(const Clock& clock) {
  std::lock_guard<std::mutex> lock(state().mutex);
  for (const auto& [stream, number] : clock) {
    if (!knows(state().host, {stream, number, ""})) {
      return false;
    }
  }
  return true;
}

void allocated(int device, const void* block) {
  if (is_async()) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().blocks[block].stream = stream_of(device, current_ids[device]);
  }
}

void record_stream(const void* block, int stream) {
  if (is_async()) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().blocks[block].recorded.insert(stream);
  }
}

void freed(const void* block) {
  if (!is_async()) {
    return;
  }
  auto& all = state();
  std::lock_guard<std::mutex> lock(all.mutex);
  auto found = all.blocks.find(block);
  if (found == all.blocks.end()) {
    return;
  }
  const Block& used = found->second;
  auto check = [&](const Operation& last) {
    const bool is_safe = is_before(last, used.stream) || knows(all.host, last) || used.recorded.count(last.stream) > 0;
    if (!is_safe) {
      violation("memory of stream " + std::to_string(used.stream % kStreamsPerDevice) + " was freed while " +
                named(last) + " may still use it");
    }
  };
  check(used.write);
  for (const auto& [stream, read] : used.reads) {
    check(read);
  }
  all.blocks.erase(found);
}

bool host_memory_is_used(const void* data, size_t size) {
  std::lock_guard<std::mutex> lock(state().mutex);
  auto is_inside = [&](const void* other) {
    return other >= data && other < static_cast<const char*>(data) + size;
  };
  const auto& [uploads, downloads] = std::tie(state().uploads, state().downloads);
  return std::any_of(uploads.begin(), uploads.end(), [&](const Upload& u) { return is_inside(u.from); }) ||
         std::any_of(downloads.begin(), downloads.end(), [&](const Download& d) { return is_inside(d.to); });
}

long finish_streams() {
  auto& all = state();
  std::lock_guard<std::mutex> lock(all.mutex);
  for (const auto& [number, stream] : all.streams) {
    all.host[number] = stream.number;
  }
  settle();
  return all.violations;
}

}  // namespace fake
