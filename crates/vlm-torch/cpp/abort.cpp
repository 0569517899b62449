// Says what the program was doing when it is aborted: by Rust when it cannot allocate memory, by
// C++ after an exception that nothing catches, by the C library when memory is corrupt. All of these
// print a reason that does not say what needed the memory.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

namespace {
std::atomic<const char*> current_operation{"starting"};

void say(const char* text) noexcept {
  // There is no place to report that this failed.
  [[maybe_unused]] auto written = ::write(STDERR_FILENO, text, std::strlen(text));
}

// Uses only what a signal handler may use.
void end_with_message(int) noexcept {
  say("error: the program was aborted while ");
  say(current_operation.load());
  say(", for the reason in the line above. If memory could not be allocated, the memory of this "
      "machine or the limit on it (ulimit -v) is used up. Earlier checkpoints are unaffected.\n");
  ::_exit(1);
}

void handle_abort() noexcept {
  struct sigaction action = {};
  action.sa_handler = end_with_message;
  ::sigaction(SIGABRT, &action, nullptr);
}

// Runs before the initialisation of libtorch, which allocates memory.
__attribute__((section(".preinit_array"), used)) void (*const before_everything)() = handle_abort;
}  // namespace

extern "C" void vlm_set_operation(const char* name) noexcept {
  current_operation.store(name);
}
