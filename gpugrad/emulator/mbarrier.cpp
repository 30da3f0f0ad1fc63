// Barriers in shared memory (mbarrier) and the bulk copies that complete on them (cp.async.bulk).
//
// A phase completes when all expected threads have arrived and all expected bytes have landed. With
// `late_copies` a bulk copy lands only when a thread waits for the phase.
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "internal.hpp"

namespace gpugrad_emulator {

struct BulkCopy {
    char* to;
    const char* from;
    int64_t size;
    int thread;
};

struct PhaseBarrier {
    int expected, missing;
    int64_t bytes;  // expected and not landed; below zero when a copy is ahead of its announcement
    uint32_t phase;
    checks::Ticks released, open;          // by the last complete phase, by the one under way
    std::vector<BulkCopy> copies, landed;  // `landed`: the data is there, but nobody has waited
    std::vector<int> waiting;
};
static std::map<const void*, PhaseBarrier> phase_barriers;

void begin_phase_barriers() { phase_barriers.clear(); }

static PhaseBarrier& at(const char* op, const void* address, Spot spot) {
    if (state.launch->checked)
        checks::access(static_cast<char*>(const_cast<void*>(address)), 8, WRITE | ATOMIC,
                       checks::place(spot.file, spot.line));
    auto found = phase_barriers.find(address);
    if (found == phase_barriers.end())
        fault(UNINITIALISED, state.current, spot, "%s on an mbarrier that is not initialised", op);
    return found->second;
}

static void complete_if_due(PhaseBarrier& b) {
    if (b.missing > 0 || b.bytes != 0) return;
    b.missing = b.expected;
    b.phase++;
    b.released = b.open;
    b.open = {};
    for (int thread : b.waiting) make_runnable(thread);
    b.waiting.clear();
}

static void flush(PhaseBarrier& b) {
    for (const BulkCopy& copy : b.copies) {
        memcpy(copy.to, copy.from, copy.size);
        b.bytes -= copy.size;
        b.landed.push_back(copy);
    }
    b.copies.clear();
    complete_if_due(b);
}

EXPORT void mbarrier_init(void* address, int count, const char* file, int line) {
    const Spot spot{file, line, 0};
    if (reinterpret_cast<uintptr_t>(address) % 8)
        fault(MISALIGNED, state.current, spot, "mbarrier at an address that is no multiple of 8");
    if (count < 1 || count >= 1 << 20)
        fault(DIVERGENT_BARRIER, state.current, spot, "mbarrier for %d threads", count);
    if (state.launch->checked)
        checks::access(static_cast<char*>(address), 8, WRITE, checks::place(file, line));
    state.busy = true;
    PhaseBarrier& b = phase_barriers[address] = {};
    b.expected = b.missing = count;
    state.busy = false;
}

EXPORT void mbarrier_arrive(void* address, int64_t bytes, const char* file, int line) {
    PhaseBarrier& b = at("arrival", address, {file, line, 0});
    if (b.missing == 0)
        fault(DIVERGENT_BARRIER, state.current, {file, line, 0},
              "more than the %d expected threads arrive in one phase of an mbarrier", b.expected);
    checks::release(b.open, state.current);
    b.bytes += bytes;
    b.missing--;
    state.busy = true;
    complete_if_due(b);
    state.busy = false;
}

EXPORT void mbarrier_wait(void* address, uint32_t parity, const char* file, int line) {
    PhaseBarrier& b = at("wait", address, {file, line, 0});
    state.busy = true;
    flush(b);
    state.busy = false;
    while ((b.phase & 1) == (parity & 1)) {
        state.busy = true;
        b.waiting.push_back(state.current);
        state.busy = false;
        park_at("mbarrier wait", file, line);
    }
    for (const BulkCopy& copy : b.landed) {
        checks::land(copy.to, copy.size, copy.thread);
        checks::release(b.released, copy.thread);
    }
    b.landed.clear();
    checks::acquire(b.released, state.current);
}

EXPORT void copy_bulk(void* to, const void* from, int64_t size, void* address, const char* file,
                      int line) {
    const Spot spot{file, line, 0};
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | size) % 16)
        fault(MISALIGNED, state.current, spot,
              "bulk copy: addresses and size have to be multiples of 16");
    PhaseBarrier& b = at("bulk copy", address, spot);
    if (state.launch->checked && size) {
        const uint32_t pc = checks::place(file, line);
        checks::access(static_cast<char*>(const_cast<void*>(from)), size, READ, pc);
        checks::access(static_cast<char*>(to), size, WRITE | PENDING | ASYNC, pc);
    }
    state.busy = true;
    b.copies.push_back(
        {static_cast<char*>(to), static_cast<const char*>(from), size, state.current});
    if (!state.launch->late_copies || !b.waiting.empty()) flush(b);
    state.busy = false;
}

}  // namespace gpugrad_emulator
