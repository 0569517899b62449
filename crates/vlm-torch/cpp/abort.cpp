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

// A library that does not notice that memory could not be allocated uses the address 0.
void end_with_fault(int) noexcept {
  say("error: a library used an invalid address while ");
  say(current_operation.load());
  say(". The usual cause is that the memory of this machine or the limit on it (ulimit -v) is used "
      "up; if it is not, please report this. Earlier checkpoints are unaffected.\n");
  ::_exit(1);
}

struct sigaction rust_handler;

[[maybe_unused]] void end_after_fault(int signal, siginfo_t* info, void* context) noexcept {
  // Rust's handler aborts the program after a stack overflow, and returns otherwise.
  if ((rust_handler.sa_flags & SA_SIGINFO) != 0 && rust_handler.sa_sigaction != nullptr) {
    rust_handler.sa_sigaction(signal, info, context);
  }
  end_with_fault(signal);
}

void handle_abort() noexcept {
  struct sigaction action = {};
  action.sa_handler = end_with_message;
  ::sigaction(SIGABRT, &action, nullptr);
  // Until libtorch is initialised.
  action.sa_handler = end_with_fault;
  ::sigaction(SIGSEGV, &action, nullptr);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// A sanitizer is initialised after `.preinit_array`, and reports faults itself.
void handle_faults() noexcept {}
[[maybe_unused]] void (*const before_everything)() = handle_abort;
#else
// Rust installs its handler only where there is none.
__attribute__((constructor)) void leave_faults_to_rust() noexcept {
  ::signal(SIGSEGV, SIG_DFL);
}

void handle_faults() noexcept {
  struct sigaction action = {};
  action.sa_sigaction = end_after_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigaction(SIGSEGV, &action, &rust_handler);
}

// Runs before the initialisation of libtorch, which allocates memory.
__attribute__((section(".preinit_array"), used)) void (*const before_everything)() = handle_abort;
#endif
}  // namespace

extern "C" void vlm_set_operation(const char* name) noexcept {
  // Rust has installed its own handler by now.
  [[maybe_unused]] static const bool once = (handle_faults(), true);
  current_operation.store(name);
}
