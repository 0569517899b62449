// Which work on the device is known to be complete, and to whom. Kernels run at once on the host, so a
// missing wait would not change a result; instead, the order in which a GPU may do the work is kept
// here, and memory that is used without the necessary waits is an error. With FAKE_CUDA_ASYNC only.
#pragma once

#include <cstddef>
#include <map>
#include <string>

namespace fake {

// For each stream, the number of the last operation that is known to be complete.
using Clock = std::map<int, long>;

bool is_async();

// Streams are numbered by device; `stream_of` is a number that is unique among all devices.
int stream_of(int device, long id);
long current_stream_id(int device);
long exchange_stream_id(int device, long id);
long new_stream_id();

// ---- Operations on the current stream -----------------------------------------------------------

// Starts an operation on the current stream of the device, whose accesses follow.
void begin_operation(int device, const std::string& name);
// The operation reads or writes the device memory that starts at `block`. Throws std::runtime_error if
// another stream may still use it.
void access(const void* block, bool writes);
// The operation reads page-locked host memory later. A change of the memory before the host has waited
// for the operation is an error.
void reads_host_later(const void* from, size_t size);
// The operation writes page-locked host memory. The values are there when the host has waited.
void writes_host_later(void* to, const void* values, size_t size);

// ---- Waiting ------------------------------------------------------------------------------------

Clock clock_of_stream(int stream);
// Later operations of `stream` start after all operations in `clock`.
void stream_waits(int stream, const Clock& clock);
// The host has waited for all operations in `clock`.
void host_waits(const Clock& clock);
bool host_knows(const Clock& clock);

// ---- Memory -------------------------------------------------------------------------------------

void allocated(int device, const void* block);
// A stream other than the one that allocated the block uses it; it is not reused before that stream is
// done.
void record_stream(const void* block, int stream);
// An error if another stream may still use the block, which the next allocation may reuse.
void freed(const void* block);
// Whether an operation that the host has not waited for reads or writes this host memory.
bool host_memory_is_used(const void* data, size_t size);

// Waits for all streams. Returns the number of errors that were found in the whole process.
long finish_streams();

}  // namespace fake
