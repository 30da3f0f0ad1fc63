// Runs a kernel on the CPU: threads as fibers on one OS thread, blocks one after another.
//
// A thread runs on a fiber's stack until it waits or ends; a thread that never waits leaves its
// stack to the next one, so such kernels are a plain loop. Only `collective` and `barrier` wait.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "internal.hpp"

struct uint3 {
    uint32_t x, y, z;
};
EXPORT uint3 thread_index __asm__("gpugrad_thread_index");
EXPORT uint3 block_index __asm__("gpugrad_block_index");
EXPORT uint3 block_size __asm__("gpugrad_block_size");
EXPORT uint3 grid_size __asm__("gpugrad_grid_size");
EXPORT char* dynamic_memory __asm__("gpugrad_dynamic_memory");

namespace gpugrad_emulator {

State state;

// ---- switching stacks ----
#if defined(__x86_64__) && !defined(GPUGRAD_PORTABLE)
using Context = void*;
extern "C" void gpugrad_switch(void** save, void* load);
__asm__(
    ".text\n.type gpugrad_switch, @function\n.hidden gpugrad_switch\ngpugrad_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
    ".size gpugrad_switch, .-gpugrad_switch\n");
static void switch_to(Context& save, Context& load) { gpugrad_switch(&save, load); }
static void prepare(Context& context, char*, char* end, void (*entry)()) {
    void** top = reinterpret_cast<void**>(end) - 2;  // entry sees a stack as after a call
    *top = reinterpret_cast<void*>(entry);
    context = top - 6;
}
#else
using Context = ucontext_t;
static void switch_to(Context& save, Context& load) { swapcontext(&save, &load); }
static void prepare(Context& context, char* begin, char* end, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = begin;
    context.uc_stack.ss_size = end - begin;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

constexpr int FIBERS = MAX_THREADS + 1;
constexpr int SPINS = 64;  // atomics in a row, then another thread goes on

struct Fiber {
    Context context;
    bool fresh;
};
static Fiber fibers[FIBERS];
static int free_fibers[FIBERS], free_count;
static Context main_context;
static int fiber_of[MAX_THREADS];  // of a parked thread, else -1
static int running_fiber, chosen;
static uint64_t runnable[MAX_THREADS / 64];
static uint64_t random_state;

static char* stack_of(int fiber) { return state.stacks + fiber * (GUARD + STACK) + GUARD; }

static void free_all_fibers() {
    free_count = FIBERS;
    for (int i = 0; i < FIBERS; i++) free_fibers[i] = FIBERS - 1 - i, fibers[i].fresh = true;
}

static bool make_stacks() {
    const size_t size = FIBERS * (GUARD + STACK);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    state.stacks = static_cast<char*>(memory);
    state.stacks_end = state.stacks + size;
    for (int i = 0; i < FIBERS; i++) mprotect(stack_of(i) - GUARD, GUARD, PROT_NONE);
    free_all_fibers();
    return true;
}

// ---- reports ----
void set_thread(uint32_t (&index)[3], int thread) {
    const uint32_t *size = state.launch->block, t = thread;
    index[0] = t % size[0], index[1] = t / size[0] % size[1], index[2] = t / size[0] / size[1];
}

static uint64_t block_at(uint64_t rank) {
    const uint32_t* grid = state.launch->grid;
    const uint64_t n = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    if (state.launch->order == 0) return rank;
    if (state.launch->order == 1) return n - 1 - rank;
    uint64_t step = (n / 3 * 2 + state.launch->seed) % n + 1;
    for (;; step++) {  // a step without a common factor with n visits every block once
        uint64_t a = step, b = n;
        while (b) {
            const uint64_t rest = a % b;
            a = b, b = rest;
        }
        if (a == 1) break;
    }
    return static_cast<uint64_t>(
        (static_cast<unsigned __int128>(rank) * step + state.launch->seed) % n);
}

void set_block(uint32_t (&index)[3], uint64_t rank) {
    const uint32_t* grid = state.launch->grid;
    const uint64_t b = block_at(rank);
    index[0] = b % grid[0], index[1] = b / grid[0] % grid[1];
    index[2] = b / grid[0] / grid[1];
}

static void fill(Report& report, Kind kind, int thread, Spot spot, const char* format,
                 va_list arguments) {
    report.kind = kind;
    set_block(report.here.block, state.block_rank);
    set_thread(report.here.thread, thread);
    report.here.pc = spot.pc;
    report.here.line = spot.line;
    snprintf(report.here.file, sizeof report.here.file, "%s", spot.file ? spot.file : "");
    vsnprintf(report.text, sizeof report.text, format, arguments);
}

void set_report(Report& report, Kind kind, int thread, Spot spot, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill(report, kind, thread, spot, format, arguments);
    va_end(arguments);
}

void fault(Kind kind, int thread, Spot spot, const char* format, ...) {
    checks::settle(kind);
    va_list arguments;
    va_start(arguments, format);
    fill(*state.report, kind, thread, spot, format, arguments);
    va_end(arguments);
    siglongjmp(state.exit, 1);
}

static bool equal(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

static bool same(const Wait& a, const Wait& b) {
    return a.line == b.line && a.mask == b.mask && a.barrier == b.barrier && equal(a.op, b.op) &&
           equal(a.file, b.file);
}

// "threads 0-15, 32: finished; threads 16-31: __syncthreads at a.cu:7; ..."
static void describe_threads(char* out, size_t size) {
    bool told[MAX_THREADS] = {};
    size_t used = 0;
    auto say = [&](const char* format, auto... values) {
        if (used < size) used += snprintf(out + used, size - used, format, values...);
    };
    auto waits = [](int t) {
        return fiber_of[t] < 0 ? Wait{"", "", t == state.current ? 1 : 0, 0, 0} : state.waits[t];
    };
    for (int first = 0; first < state.threads; first++) {
        if (told[first]) continue;
        const Wait group = waits(first);
        say(used ? "; " : "");
        const char* comma = "threads ";
        for (int t = first; t < state.threads; t++) {
            if (told[t] || !same(waits(t), group)) continue;
            int last = t;
            while (last + 1 < state.threads && !told[last + 1] && same(waits(last + 1), group))
                last++;
            for (int i = t; i <= last; i++) told[i] = true;
            say(last > t ? "%s%d-%d" : "%s%d", comma, t, last);
            comma = ", ";
            t = last;
        }
        if (!*group.op) {
            say(group.line ? " running" : " finished or not started");
        } else {
            say(" wait in %s at %s:%d", group.op, group.file, group.line);
            if (group.mask) say(" (mask 0x%08x)", group.mask);
            if (!group.mask && group.barrier) say(" (barrier %d)", group.barrier);
        }
    }
}

[[noreturn]] static void fault_with_threads(Kind kind, int thread, Spot spot, const char* what) {
    char who[900];
    describe_threads(who, sizeof who);
    fault(kind, thread, spot, "%s: %s", what, who);
}

[[noreturn]] static void deadlock() {
    int thread = 0;
    while (fiber_of[thread] < 0) thread++;
    state.current = thread;  // one that waits
    const Wait& wait = state.waits[thread];
    fault_with_threads(DEADLOCK, thread, {wait.file, wait.line, 0}, "no thread can go on");
}

// ---- the scheduler ----
void make_runnable(int thread) { runnable[thread / 64] |= uint64_t(1) << thread % 64; }

static int next_random(int n) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return static_cast<int>(random_state % n);
}

// Takes the next thread off the runnable ones; -1 if there is none.
static int pick() {
    const int words = (state.threads + 63) / 64, order = state.launch->order;
    const int start = order == 2 ? next_random(state.threads) : 0;
    for (int i = 0; i <= words; i++) {
        const int word = order == 1 ? words - 1 - i : (start / 64 + i) % words;
        if (word < 0) break;
        uint64_t bits = runnable[word];
        if (i == 0) bits &= ~uint64_t(0) << start % 64;
        if (!bits) continue;
        const int bit = order == 1 ? 63 - __builtin_clzll(bits) : __builtin_ctzll(bits);
        runnable[word] &= ~(uint64_t(1) << bit);
        return word * 64 + bit;
    }
    return -1;
}

static uint3 thread_indices[MAX_THREADS];

static void become(int thread) {
    state.current = thread;
    thread_index = thread_indices[thread];
}

static void enter(int fiber) {
    running_fiber = fiber;
    state.stack = stack_of(fiber);
    state.stack_end = state.stack + STACK;
}

static void work();

static int take_fiber() {
    const int fiber = free_fibers[--free_count];
    if (fibers[fiber].fresh) {
        fibers[fiber].fresh = false;
        // not all at the same distance: their tops would share a few lines of the cache
        char* top = stack_of(fiber) + STACK - fiber % 64 * 192;
        prepare(fibers[fiber].context, stack_of(fiber), top, work);
    }
    return fiber;
}

static void finished(int thread);

// The body of a fiber: run threads that have not started until one that has can go on.
static void work() {
    for (;;) {
        const int thread = chosen >= 0 ? chosen : pick();
        chosen = -1;
        const int self = running_fiber;
        if (thread < 0) {
            if (state.live > 0) deadlock();
            free_fibers[free_count++] = self;
            switch_to(fibers[self].context, main_context);
        } else if (fiber_of[thread] >= 0) {
            free_fibers[free_count++] = self;
            enter(fiber_of[thread]);
            switch_to(fibers[self].context, fibers[running_fiber].context);
        } else {
            become(thread);
            state.launch->entry(state.launch->arguments);
            finished(thread);
        }
    }
}

// Let `next` run, and others, until somebody makes the current thread runnable again.
static void park_for(int next) {
    const int thread = state.current, self = running_fiber;
    fiber_of[thread] = self;
    runnable[next / 64] &= ~(uint64_t(1) << next % 64);
    if (fiber_of[next] >= 0) {
        enter(fiber_of[next]);
    } else {
        chosen = next;
        enter(take_fiber());
    }
    switch_to(fibers[self].context, fibers[running_fiber].context);
    fiber_of[thread] = -1;
    become(thread);
}

// Let others run until somebody makes the current thread runnable again.
static void park() {
    const int next = pick();
    if (next < 0) {
        fiber_of[state.current] = running_fiber;
        deadlock();
    }
    park_for(next);
}

void park_at(const char* op, const char* file, int line) {
    state.waits[state.current] = {op, file, line, 0, 0};
    park();
}

static int spinning, spins;  // the thread of the last atomic, and how many of them in a row

// A thread that comes here again and again may wait for another to change memory: now and then the
// next one that can run goes on in its place.
void may_spin(const char* file, int line) {
    const int thread = state.current;
    if (thread != spinning) spinning = thread, spins = 0;
    if (++spins % SPINS) return;
    const int words = (state.threads + 63) / 64, word = thread / 64;
    for (int i = 0; i <= words; i++) {
        uint64_t bits = runnable[(word + i) % words];
        const uint64_t later = ~uint64_t(1) << thread % 64;  // 0 for the last bit
        if (i == 0) bits &= later;
        if (i == words) bits &= ~later;
        if (!bits) continue;
        const int next = (word + i) % words * 64 + __builtin_ctzll(bits);
        state.waits[thread] = {"an atomic", file, line, 0, 0};
        make_runnable(thread);
        return park_for(next);
    }
}

// ---- barriers ----
struct Barrier {
    int arrived, expected, sum;
    bool whole;  // __syncthreads: every thread of the block has to come
    uint64_t members[MAX_THREADS / 64], waiting[MAX_THREADS / 64];
    Wait first;
    int result;
};
static Barrier barriers[BARRIERS];

static void open_barrier(Barrier& b) {
    b.result = b.sum;
    if (b.arrived == state.threads) checks::sync_block();
    else checks::sync_threads(b.members);
    for (int i = 0; i < MAX_THREADS / 64; i++) {
        runnable[i] |= b.waiting[i];
        b.members[i] = b.waiting[i] = 0;
    }
    b.arrived = b.sum = 0;
}

EXPORT int barrier(const char* op, int id, int threads, bool wait, int value, const char* file,
                   int line) {
    const int t = state.current;
    const Spot spot{file, line, 0};
    if (id < 0 || id >= BARRIERS)
        fault(DIVERGENT_BARRIER, t, spot, "barrier %d does not exist; there are %d", id, BARRIERS);
    if (threads % WARP || threads < 0)
        fault(DIVERGENT_BARRIER, t, spot, "%s for %d threads: not a multiple of 32", op, threads);
    if (threads > state.threads)
        fault(DIVERGENT_BARRIER, t, spot, "%s for %d threads in a block of %d", op, threads,
              state.threads);
    Barrier& b = barriers[id];
    const int expected = threads ? threads : state.threads;
    state.waits[t] = {op, file, line, 0, id};
    if (threads == 0 && state.live < state.threads)
        fault_with_threads(DIVERGENT_BARRIER, t, spot, "some threads of the block ended before");
    if (b.arrived == 0) {
        b.first = state.waits[t], b.expected = expected, b.whole = threads == 0;
    } else if (b.expected != expected) {
        fault(DIVERGENT_BARRIER, t, spot, "%s for %d threads meets one for %d at %s:%d", op,
              expected, b.expected, b.first.file, b.first.line);
    } else if (threads == 0 && !same(b.first, state.waits[t])) {
        char what[300];
        snprintf(what, sizeof what,
                 "threads meet at different barriers, %s at %s:%d and %s at %s:%d", b.first.op,
                 b.first.file, b.first.line, op, file, line);
        fault_with_threads(DIVERGENT_BARRIER, t, spot, what);
    }
    const uint64_t bit = uint64_t(1) << t % 64;
    b.members[t / 64] |= bit;
    b.sum += value;
    if (++b.arrived == b.expected) {
        open_barrier(b);
        return b.result;
    }
    if (!wait) return 0;
    b.waiting[t / 64] |= bit;
    park();
    return b.result;
}

// ---- warp operations ----
using Combine = void (*)(void* const* operands, uint32_t lanes);
struct Pending {
    Combine combine;
    bool fence;
};
struct Warp {
    uint32_t live, parked;
    bool uniform;  // all parked lanes wait in the same operation, `first`
    Wait first;
    void* operands[WARP];
};
static Warp warps[WARPS];
static Pending pending[MAX_THREADS];
static int combining_warp;

// Completes the operation that `thread` is parked in, if all its lanes are here.
static uint32_t complete(int thread) {
    const int w = thread / WARP;
    Warp& warp = warps[w];
    const uint32_t mask = state.waits[thread].mask, lanes = mask & warp.live;
    if (lanes & ~warp.parked) return 0;
    if (!warp.uniform)
        for (int i = 0; i < WARP; i++)
            if (lanes >> i & 1 && state.waits[w * WARP + i].mask != mask) return 0;
    if (pending[thread].combine) {
        void* operands[WARP];
        for (int i = 0; i < WARP; i++) operands[i] = lanes >> i & 1 ? warp.operands[i] : nullptr;
        combining_warp = w;
        pending[thread].combine(operands, lanes);
    }
    if (pending[thread].fence) checks::sync_warp(w, lanes);
    warp.parked &= ~lanes;
    return lanes;
}

// CUDA's intrinsics may be reached at several lines, instructions (mma, ldmatrix) are `.aligned`.
static bool meet(const Wait& a, const Wait& b) {
    return same(a, b) || (a.op[0] == '_' && a.mask == b.mask && equal(a.op, b.op));
}

// Reports a lane that waits for this one in another operation.
static void find_mismatch(const Wait& mine) {
    const int t = state.current, w = t / WARP, lane = t % WARP;
    for (uint32_t others = mine.mask & warps[w].parked; others; others &= others - 1) {
        const int other = w * WARP + __builtin_ctz(others);
        const Wait& wait = state.waits[other];
        if (!(wait.mask >> lane & 1) || meet(wait, mine)) continue;  // else it may join later
        fault(WARP_MISMATCH, t, {mine.file, mine.line, 0},
              "thread %d calls %s (mask 0x%08x) while thread %d of its warp waits for it in %s at "
              "%s:%d (mask 0x%08x)",
              t, mine.op, mine.mask, other, wait.op, wait.file, wait.line, wait.mask);
    }
}

EXPORT void collective(const char* op, uint32_t mask, void* operand, Combine combine, bool fence,
                       const char* file, int line) {
    const int t = state.current, w = t / WARP, lane = t % WARP;
    Warp& warp = warps[w];
    if (!(mask >> lane & 1))
        fault(WARP_MISMATCH, t, {file, line, 0},
              "lane %d calls %s with mask 0x%08x, which leaves it out", lane, op, mask);
    const Wait mine{op, file, line, mask, 0};
    state.waits[t] = mine;
    pending[t] = {combine, fence};
    warp.operands[lane] = operand;
    if (!warp.parked) warp.first = mine, warp.uniform = true;
    else if (warp.uniform) warp.uniform = meet(warp.first, mine);
    if (!warp.uniform) find_mismatch(mine);
    warp.parked |= 1u << lane;
    const uint32_t done = complete(t);
    if (!done) return park();
    for (uint32_t lanes = done & ~(1u << lane); lanes; lanes &= lanes - 1)
        make_runnable(w * WARP + __builtin_ctz(lanes));
}
struct Shuffle {
    uint64_t in, out;
    int source;
};

[[noreturn]] static void fault_in_lane(int lane, const char* what, int source) {
    const int t = combining_warp * WARP + lane;
    const Wait& wait = state.waits[t];
    fault(WARP_MISMATCH, t, {wait.file, wait.line, 0}, "%s: lane %d reads lane %d, %s", wait.op,
          lane, source, what);
}

EXPORT uint64_t shuffle(const char* op, uint32_t mask, uint64_t value, int kind, int argument,
                        int width, const char* file, int line) {
    const int lane = state.current % WARP;
    if (width < 1 || width > 32 || (width & (width - 1)))
        fault(WARP_MISMATCH, state.current, {file, line, 0},
              "%s: width %d is not a power of two up to 32", op, width);
    const int first = lane & ~(width - 1);
    int source = lane;
    if (kind == 0) source = first + (argument & (width - 1));
    if (kind == 1 && lane - argument >= first) source = lane - argument;
    if (kind == 2 && lane + argument < first + width) source = lane + argument;
    if (kind == 3 && (lane ^ argument) < first + width) source = lane ^ argument;
    if (source < 0 || source >= WARP)
        fault(WARP_MISMATCH, state.current, {file, line, 0}, "%s: there is no lane %d", op, source);
    Shuffle operand{value, 0, source};
    collective(
        op, mask, &operand,
        [](void* const* operands, uint32_t lanes) {
            for (uint32_t rest = lanes; rest; rest &= rest - 1) {
                const int i = __builtin_ctz(rest);
                Shuffle* s = static_cast<Shuffle*>(operands[i]);
                if (!(lanes >> s->source & 1))
                    fault_in_lane(i, "which takes no part (not in the mask, ended or not there)",
                                  s->source);
                s->out = static_cast<Shuffle*>(operands[s->source])->in;
            }
        },
        false, file, line);
    return operand.out;
}

EXPORT uint32_t vote(const char* op, uint32_t mask, uint64_t value, bool match, const char* file,
                     int line) {
    struct Operand {
        uint64_t in;
        uint32_t out;
        bool match;
    } operand{value, 0, match};
    collective(
        op, mask, &operand,
        [](void* const* operands, uint32_t lanes) {
            for (uint32_t a = lanes; a; a &= a - 1) {
                Operand* mine = static_cast<Operand*>(operands[__builtin_ctz(a)]);
                for (uint32_t b = lanes; b; b &= b - 1) {
                    const uint64_t in = static_cast<Operand*>(operands[__builtin_ctz(b)])->in;
                    if (mine->match ? in == mine->in : in != 0) mine->out |= b & -b;
                }
            }
        },
        false, file, line);
    return operand.out;
}

EXPORT int64_t reduce(const char* op, uint32_t mask, int64_t value, int kind, const char* file,
                      int line) {
    struct Operand {
        int64_t in, out;
        int kind;
    } operand{value, 0, kind};
    collective(
        op, mask, &operand,
        [](void* const* operands, uint32_t lanes) {
            bool first = true;
            int64_t total = 0;
            for (uint32_t rest = lanes; rest; rest &= rest - 1, first = false) {
                const Operand* o = static_cast<Operand*>(operands[__builtin_ctz(rest)]);
                if (first) total = o->in;
                else if (o->kind == 0) total += o->in;
                else if (o->kind == 1) total = o->in < total ? o->in : total;
                else if (o->kind == 2) total = o->in > total ? o->in : total;
                else if (o->kind == 3) total &= o->in;
                else if (o->kind == 4) total |= o->in;
                else total ^= o->in;
            }
            for (uint32_t rest = lanes; rest; rest &= rest - 1)
                static_cast<Operand*>(operands[__builtin_ctz(rest)])->out = total;
        },
        false, file, line);
    return operand.out;
}

EXPORT void failed(const char* text, const char* file, int line) {
    fault(ASSERTION, state.current, {file, line, 0}, "%s", text);
}

static void finished(int thread) {
    state.live--;
    if (barriers[0].arrived && barriers[0].whole) {
        const Wait& wait = barriers[0].first;
        fault_with_threads(DIVERGENT_BARRIER, thread, {wait.file, wait.line, 0},
                           "a thread ended while others of its block wait for it");
    }
    const int w = thread / WARP;
    warps[w].live &= ~(1u << thread % WARP);
    // a finished lane no longer holds up the others
    for (uint32_t parked = warps[w].parked; parked; parked &= parked - 1) {
        const int t = w * WARP + __builtin_ctz(parked);
        if (!(warps[w].parked >> t % WARP & 1)) continue;
        for (uint32_t lanes = complete(t); lanes; lanes &= lanes - 1)
            make_runnable(w * WARP + __builtin_ctz(lanes));
    }
}

// ---- a launch ----
struct Module {
    uintptr_t base;
    char* shared;
    size_t shared_size;
};

// The kernel's library: its thread-local segment is the static shared memory.
static Module find_module(const void* code) {
    Dl_info info;
    Module module{};
    if (!dladdr(code, &info)) return module;
    module.base = reinterpret_cast<uintptr_t>(info.dli_fbase);
    dl_iterate_phdr(
        [](dl_phdr_info* library, size_t, void* data) {
            Module& found = *static_cast<Module*>(data);
            uintptr_t first = ~uintptr_t(0);
            const ElfW(Phdr)* tls = nullptr;
            for (int i = 0; i < library->dlpi_phnum; i++) {
                const auto& header = library->dlpi_phdr[i];
                const uintptr_t start = library->dlpi_addr + header.p_vaddr;
                if (header.p_type == PT_LOAD && start < first) first = start;
                if (header.p_type == PT_TLS) tls = &header;
            }
            if (first != found.base) return 0;
            if (tls) {
                size_t index[2] = {library->dlpi_tls_modid, 0};
                extern void* tls_address(size_t*) __asm__("__tls_get_addr");
                found.shared = static_cast<char*>(tls_address(index));
                found.shared_size = tls->p_memsz;
            }
            return 1;
        },
        &module);
    return module;
}

static char* arena;
static size_t arena_size;

// Dynamic shared memory that ends at a guard page.
static bool make_arena(size_t size) {
    if (size > arena_size || !arena) {
        if (arena) munmap(arena, arena_size + GUARD);
        arena_size = ((size | 1) + GUARD - 1) / GUARD * GUARD;
        void* memory = mmap(nullptr, arena_size + GUARD, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return arena = nullptr, false;
        arena = static_cast<char*>(memory);
        mprotect(arena + arena_size, GUARD, PROT_NONE);
    }
    state.dynamic_shared = dynamic_memory = arena + arena_size - (size + 127) / 128 * 128;
    return true;
}

static void run_block(uint64_t rank) {
    const Launch& launch = *state.launch;
    uint32_t index[3];
    state.block_rank = rank;
    set_block(index, rank);
    block_index = {index[0], index[1], index[2]};
    memset(state.static_shared, launch.poison, state.static_size);
    memset(state.dynamic_shared, launch.poison, launch.dynamic);
    state.live = state.threads;
    memset(runnable, 0, sizeof runnable);
    for (int t = 0; t < state.threads; t++) make_runnable(t), fiber_of[t] = -1;
    memset(barriers, 0, sizeof barriers);
    for (int w = 0; w < WARPS; w++) {
        const int lanes = state.threads - w * WARP;
        warps[w].live = lanes >= WARP ? ~0u : lanes > 0 ? (1u << lanes) - 1 : 0;
        warps[w].parked = 0;
    }
    begin_copies();
    begin_phase_barriers();
    begin_warpgroups();
    checks::begin_block();
    chosen = -1;
    spins = 0;  // or where threads take turns would depend on what ran before
    enter(take_fiber());
    switch_to(main_context, fibers[running_fiber].context);
    end_phase_barriers();
    checks::end_block();
}

// Returns 0, or 1 with the report filled in, or 2 if memory ran out.
extern "C" EXPORT int gpugrad_launch(const Launch* launch, Report* report) {
    memset(report, 0, sizeof *report);
    if (!state.stacks && !make_stacks()) return 2;
    if (!make_arena(launch->dynamic)) return 2;
    const Module module = find_module(reinterpret_cast<void*>(launch->entry));
    state.launch = launch;
    state.report = report;
    state.owner = pthread_self();
    state.code_base = module.base;
    state.static_shared = module.shared;
    state.static_size = module.shared_size;
    state.current = 0;
    state.threads = launch->block[0] * launch->block[1] * launch->block[2];
    for (int t = 0; t < state.threads; t++) {
        uint32_t index[3];
        set_thread(index, t);
        thread_indices[t] = {index[0], index[1], index[2]};
    }
    random_state = launch->seed * 0x9e3779b97f4a7c15ull | 1;
    block_size = {launch->block[0], launch->block[1], launch->block[2]};
    grid_size = {launch->grid[0], launch->grid[1], launch->grid[2]};
    state.busy = false;  // a fault may have left it set
    checks::begin_launch();
    watch();
    if (sigsetjmp(state.exit, 1) == 0) {
        state.running = true;
        const uint64_t blocks = uint64_t(launch->grid[0]) * launch->grid[1] * launch->grid[2];
        for (uint64_t rank = 0; rank < blocks && rank < launch->blocks; rank++) run_block(rank);
    } else {
        free_all_fibers();  // abandoned in the middle of their kernels
    }
    state.running = false;
    unwatch();
    checks::end_launch();
    return report->kind != NONE;
}

}  // namespace gpugrad_emulator
