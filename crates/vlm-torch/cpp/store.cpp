// A separate connection to the store of a process group, which another thread can use while the
// group's own connection waits.
#include "guard.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <memory>

namespace {
struct StoreClient {
  c10::intrusive_ptr<c10d::Store> store;
};

thread_local std::vector<uint8_t> last_value;
}  // namespace

extern "C" {

int vlm_store_connect(
    const char* host, uint16_t port, int64_t timeout_ms, const char* prefix, StoreClient** out) noexcept {
  return vlm::guard([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto made = std::make_unique<StoreClient>();
    made->store = c10::make_intrusive<c10d::PrefixStore>(
        prefix, c10::make_intrusive<c10d::TCPStore>(host, options));
    *out = made.release();
  });
}

void vlm_store_free(StoreClient* client) noexcept {
  vlm::guard([&] { delete client; });
}

int vlm_store_set(StoreClient* client, const char* key, const uint8_t* value, size_t size) noexcept {
  return vlm::guard([&] { client->store->set(key, std::vector<uint8_t>(value, value + size)); });
}

// `*value` is null if the key is not set; otherwise it is valid until the next call on this thread.
int vlm_store_get(StoreClient* client, const char* key, const uint8_t** value, size_t* size) noexcept {
  return vlm::guard([&] {
    *value = nullptr;
    *size = 0;
    if (client->store->check({key})) {
      last_value = client->store->get(key);
      *value = last_value.data();
      *size = last_value.size();
    }
  });
}
}
