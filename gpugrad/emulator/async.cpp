// Asynchronous copies (cp.async). They land at once, or with `late_copies` only when the thread
// that issued them waits: a kernel must be right either way. Until then their target is PENDING.
#include <cstdint>
#include <cstring>
#include <vector>

#include "internal.hpp"

namespace gpugrad_emulator {

struct Copy {
    char* to;
    const char* from;
    int size, from_size;  // the rest becomes zero
    int group;
};
static std::vector<Copy> under_way[MAX_THREADS];
static int groups[MAX_THREADS];  // committed so far
static bool any;

void begin_copies() {
    if (!any) return;
    any = false;
    for (int t = 0; t < MAX_THREADS; t++) under_way[t].clear(), groups[t] = 0;
}

static void transfer(const Copy& copy) {
    memcpy(copy.to, copy.from, copy.from_size);
    memset(copy.to + copy.from_size, 0, copy.size - copy.from_size);
}

EXPORT void copy_async(void* to, const void* from, int size, int from_size, const char* file,
                       int line) {
    const int t = state.current;
    const Spot spot{file, line, 0};
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & (size - 1))
        fault(MISALIGNED, t, spot, "asynchronous copy of %d bytes: an address is not a multiple",
              size);
    if (from_size < 0 || from_size > size)
        fault(OUT_OF_BOUNDS, t, spot, "asynchronous copy of %d bytes from %d", size, from_size);
    Copy copy{static_cast<char*>(to), static_cast<const char*>(from), size, from_size, groups[t]};
    if (state.launch->checked) {
        const uint32_t pc = checks::place(file, line);
        if (from_size) checks::access(const_cast<char*>(copy.from), from_size, READ, pc);
        checks::access(copy.to, size, WRITE | PENDING, pc);
    }
    want_shared("asynchronous copy", to, size, spot);
    if (from_size) want_global("asynchronous copy", from, spot);
    if (!state.launch->late_copies) transfer(copy);
    state.busy = true;
    any = true;
    under_way[t].push_back(copy);
    state.busy = false;
}

EXPORT void copy_commit() { groups[state.current]++, any = true; }

EXPORT void copy_wait(int pending_groups) {
    const int t = state.current;
    const int before = pending_groups < 0 ? groups[t] + 1 : groups[t] - pending_groups;
    auto& copies = under_way[t];
    size_t done = 0;  // copies are in the order of their groups
    for (; done < copies.size() && copies[done].group < before; done++) {
        if (state.launch->late_copies) transfer(copies[done]);
        checks::land(copies[done].to, copies[done].size, t);
    }
    copies.erase(copies.begin(), copies.begin() + done);
}

}  // namespace gpugrad_emulator
