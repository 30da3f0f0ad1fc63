// The emulator's state, shared by the scheduler (runtime.cpp) and the checks (checks.cpp).
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>

#include <pthread.h>

#define EXPORT __attribute__((visibility("default")))

namespace gpugrad_emulator {

constexpr int MAX_THREADS = 1024;
constexpr int WARP = 32;
constexpr int WARPS = MAX_THREADS / WARP;
constexpr int BARRIERS = 16;
constexpr size_t GUARD = 64 << 10, STACK = 192 << 10;  // multiples of every page size

// Mirrored in faults.py.
enum Kind : int {
    NONE,
    RACE,
    OUT_OF_BOUNDS,
    UNINITIALISED,
    MISALIGNED,
    OVERFLOWED,
    DIVERGENT_BARRIER,
    WARP_MISMATCH,
    DEADLOCK,
    TIMEOUT,
    MEMORY_FAULT,
    STACK_OVERFLOW,
    ASSERTION,
    DIVISION,
    UNDEFINED,
    READ_ONLY,
};

// Where something happened. `pc` is relative to the kernel's library; 0 means file and line hold.
struct Place {
    uint32_t block[3];
    uint32_t thread[3];
    uint64_t pc;
    char file[256];
    int32_t line;
};

enum Space : int { NOWHERE, SHARED, DYNAMIC, GLOBAL, STATIC };

struct Report {
    int32_t kind;
    int32_t has_other;
    Place here, other;
    int32_t space;     // which kind of memory
    int32_t argument;  // GLOBAL: index into the arrays of the launch
    int64_t offset;    // bytes from the start of that memory
    int64_t size;      // bytes accessed
    int64_t extent;    // bytes of that memory
    char text[1200];
};

// An array that a kernel may touch.
struct Array {
    char* base;
    uint64_t size;
    int32_t writable;
    int32_t argument;
};

struct Launch {
    void (*entry)(void**);
    void** arguments;
    uint32_t grid[3];
    uint32_t block[3];
    uint64_t dynamic;
    int32_t order;  // of blocks and threads: 0 ascending, 1 descending, 2 random
    uint32_t seed;
    int32_t poison;
    int32_t checked;
    double seconds;  // of processor time, then TIMEOUT
    const Array* arrays;
    int32_t array_count;
    int32_t late_copies;  // asynchronous copies land when waited for; else at once
    uint64_t blocks;      // that run, at most
};

struct Wait {
    const char* op;
    const char* file;
    int line;
    uint32_t mask;  // lanes of a warp operation; 0 at a barrier
    int barrier;
};

struct State {
    const Launch* launch;
    Report* report;
    sigjmp_buf exit;
    pthread_t owner;
    volatile bool running;
    volatile bool busy;  // in code that must not be left by a signal
    uintptr_t code_base;
    char *static_shared, *dynamic_shared;
    size_t static_size;
    char *stacks, *stacks_end;  // of all fibers
    char *stack, *stack_end;    // of the running one
    int threads, live;
    int current;
    uint64_t block_number;  // linear index of the running block
    uint64_t block_rank;    // how many blocks ran before it
    Wait waits[MAX_THREADS];
};

extern State state;

struct Spot {
    const char* file;
    int line;
    uintptr_t pc;
};

[[noreturn]] void fault(Kind kind, int thread, Spot spot, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
void set_report(Report& report, Kind kind, int thread, Spot spot, const char* format, ...)
    __attribute__((format(printf, 5, 6)));
void set_thread(uint32_t (&index)[3], int thread);
void set_block(uint32_t (&index)[3], uint64_t rank);

void watch();
void unwatch();

// checks.cpp; all are no-ops in a plain launch
// PENDING: by what is under way; ASYNC: through the asynchronous proxy (bulk copies, wgmma)
enum How : int { READ = 0, WRITE = 1, ATOMIC = 2, PENDING = 4, ASYNC = 8, VOLATILE = 16 };

void begin_copies();                                       // async.cpp: a new block
void begin_phase_barriers();                               // mbarrier.cpp: a new block
void end_phase_barriers();                                 // mbarrier.cpp: its end
void begin_warpgroups();                                   // warpgroup.cpp: a new block
extern int sums_under_way;                                 // warpgroup.cpp: of all threads
extern int fences_in_force;                                // warpgroup.cpp: threads behind one
// Notes a write to local variables, which a product must not take behind the fence.
void note_registers(const char* address, size_t size);
// Reports an access to local variables that are the sums of a product under way.
void check_registers(const char* address, size_t size, bool write, Spot spot);
uint32_t shared_address(const void* p);                    // warpgroup.cpp
bool in_shared(const char* p, int64_t size);               // warpgroup.cpp: of the block
// Reports an operand of an instruction for shared memory that lies elsewhere: its address there
// would be another place's. And one that has to be global and is not.
void want_shared(const char* op, const void* p, int64_t size, Spot spot);
void want_global(const char* op, const void* p, Spot spot);
void park_at(const char* op, const char* file, int line);  // until another thread does the next
void make_runnable(int thread);
void may_spin(const char* file, int line);  // at an atomic

namespace checks {
// One load or store; `pc` is relative to the kernel's library.
void access(char* address, size_t size, int how, uint32_t pc);
void volatile_access(char* address, size_t size, int how, uint32_t pc);
uint32_t place(const char* file, int line);         // as a `pc`
void land(char* address, size_t size, int thread);  // what was PENDING by it is now written
// A read of shared memory through the asynchronous proxy, by products of this group of the thread
// and later, and its end for those up to the group.
void read_async(char* address, size_t size, int group, uint32_t pc);
void land_read(char* address, size_t size, int thread, int group);
void proxy_fence();
// A read through the asynchronous proxy that is no access of its own: of a barrier, by a copy.
void read_by_proxy(char* address, size_t size, uint32_t pc);
// What the warps of a block had done when something was released.
struct Ticks {
    uint32_t epoch, warps[WARPS];
    uint64_t threads[MAX_THREADS / 64];
};
void release(Ticks& ticks, int thread);
void acquire(const Ticks& ticks, int thread);
void begin_launch();
void end_launch();
void begin_block();
void end_block();
void settle(Kind kind);  // before a fault: does not return if an earlier read explains it better
Spot last_access();
void sync_block();                         // every thread of the block
void sync_warp(int warp, uint32_t lanes);  // some lanes of a warp
void sync_threads(const uint64_t* members);
}  // namespace checks

}  // namespace gpugrad_emulator
