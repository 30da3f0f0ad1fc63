// Signals while a kernel runs: guard pages, traps, and the watchdog's alarm become reports.
#include <cstddef>
#include <cstdint>
#include <ctime>

#include <dlfcn.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "internal.hpp"

namespace gpugrad_emulator {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction old_actions[4], old_alarm;
static int alarm_signal;
static timer_t timer;
alignas(64) static char signal_stack[64 << 10];
static stack_t old_stack;

static uintptr_t pc_of(void* context) {
    [[maybe_unused]] auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    return machine->gregs[REG_RIP];
#elif defined(__aarch64__)
    return machine->pc;
#else
    return 0;
#endif
}

static bool in_kernel(uintptr_t pc) {
    Dl_info info;
    return dladdr(reinterpret_cast<void*>(pc), &info) &&
           reinterpret_cast<uintptr_t>(info.dli_fbase) == state.code_base;
}

static void on_signal(int signal, siginfo_t* info, void* context) {
    if (!state.running || !pthread_equal(state.owner, pthread_self())) {
        for (int i = 0; i < 4; i++)
            if (SIGNALS[i] == signal) sigaction(signal, &old_actions[i], nullptr);
        return;  // the same instruction traps again, into the old handler
    }
    const uintptr_t pc = pc_of(context);
    // the instruction itself, where other places are return addresses
    const Spot spot{nullptr, 0, in_kernel(pc) ? pc + 1 - state.code_base : 0};
    const char* address = static_cast<char*>(info->si_addr);
    if (signal == SIGFPE)
        fault(DIVISION, state.current, spot, "integer division by zero, or of the lowest by -1");
    if (signal == SIGILL)
        fault(UNDEFINED, state.current, spot, "reached code that cannot be reached");
    if (address >= state.stacks && address < state.stacks_end)
        fault(STACK_OVERFLOW, state.current, spot,
              "the local variables of a thread take more than the emulator's %zu KiB", STACK >> 10);
    if (address < reinterpret_cast<char*>(4096))
        fault(MEMORY_FAULT, state.current, spot, "access through a null pointer");
    const int64_t offset = address - state.dynamic_shared;
    if (state.dynamic_shared && offset >= 0 && offset < int64_t(state.launch->dynamic + GUARD))
        fault(OUT_OF_BOUNDS, state.current, spot,
              "%lld bytes from the start of %llu bytes of dynamic shared memory",
              static_cast<long long>(offset),
              static_cast<unsigned long long>(state.launch->dynamic));
    fault(MEMORY_FAULT, state.current, spot,
          "access to an address where no memory is, or misaligned");
}

static int alarms = 0;  // that came outside of the kernel

static void on_alarm(int, siginfo_t*, void* context) {
    if (!state.running || !pthread_equal(state.owner, pthread_self()) || state.busy) return;
    const uintptr_t pc = pc_of(context);
    Spot spot = checks::last_access();  // its line, where the kernel's code has none: in an atomic
    if (in_kernel(pc)) spot.pc = pc + 1 - state.code_base;
    if (!spot.pc && alarms++ < 50) return;  // between two places: at the next
    fault(TIMEOUT, state.current, spot,
          "still running after %.3g s: an endless loop, or waiting for memory that another thread "
          "or block should write",
          state.launch->seconds);
}

void watch() {
    alarms = 0;
    const stack_t own{signal_stack, 0, sizeof signal_stack};
    sigaltstack(&own, &old_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &old_actions[i]);
    alarm_signal = SIGRTMIN + 5;
    action.sa_sigaction = on_alarm;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigaction(alarm_signal, &action, &old_alarm);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = alarm_signal;
    event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
    const time_t whole = static_cast<time_t>(state.launch->seconds);
    const long rest = static_cast<long>((state.launch->seconds - whole) * 1e9);
    const itimerspec when{{0, 10'000'000}, {whole, rest}};  // again while busy
    timer_settime(timer, 0, &when, nullptr);
}

void unwatch() {
    timer_delete(timer);
    struct sigaction ignore = {};
    ignore.sa_handler = SIG_IGN;
    sigaction(alarm_signal, &ignore, nullptr);  // drops one that is pending
    sigaction(alarm_signal, &old_alarm, nullptr);
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &old_actions[i], nullptr);
    sigaltstack(&old_stack, nullptr);
}

}  // namespace gpugrad_emulator
