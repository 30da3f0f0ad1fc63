// Barriers in shared memory (mbarrier) and the bulk copies that complete on them (cp.async.bulk and
// cp.async.bulk.tensor).
//
// A phase completes when all expected threads have arrived and all expected bytes have landed. With
// `late_copies` a bulk copy lands only when a thread waits for the phase. Copies are done by the
// asynchronous proxy: it has to have seen the barrier's initialisation, and what ordinary stores
// left where it writes. Who may read what landed: threads that waited for the phase it landed in.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "internal.hpp"

namespace gpugrad_emulator {

// What a copy writes in one piece. `from` is where its bytes `begin` to `end` come from; the others
// become zero. Parts of 16 bytes change places: part i goes where i ^ swizzle is.
struct Line {
    char* to;
    const char* from;
    int64_t size, begin, end;
    uint32_t swizzle;
};

constexpr int LINE = 128;  // bytes, of a box

struct BulkCopy {
    std::vector<Line> lines;
    int64_t size;
    int thread;
    uint32_t phase;  // in which it landed
    Spot spot;
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

void end_phase_barriers() {
    for (const auto& [address, b] : phase_barriers)
        for (const auto* copies : {&b.copies, &b.landed})
            for (const BulkCopy& copy : *copies)
                fault(UNDEFINED, copy.thread, copy.spot,
                      "the block has ended, but nobody has waited for this bulk copy: it may still "
                      "be under way");
}

static PhaseBarrier& at(const char* op, const void* address, Spot spot) {
    want_shared("mbarrier", address, 8, spot);
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

static void transfer(const Line& line) {
    if (!line.swizzle && line.begin == 0 && line.end == line.size) {
        memcpy(line.to, line.from, line.size);
        return;
    }
    char bytes[LINE] = {};
    if (line.end > line.begin)
        memcpy(bytes + line.begin, line.from + line.begin, line.end - line.begin);
    for (uint32_t i = 0; i < LINE / 16; i++)
        memcpy(line.to + 16 * (i ^ line.swizzle), bytes + 16 * i, 16);
}

static void flush(PhaseBarrier& b) {
    for (BulkCopy& copy : b.copies) {
        for (const Line& line : copy.lines) transfer(line);
        b.bytes -= copy.size;
        copy.phase = b.phase;
        b.landed.push_back(std::move(copy));
    }
    b.copies.clear();
    complete_if_due(b);
}

EXPORT void mbarrier_init(void* address, int count, const char* file, int line) {
    const Spot spot{file, line, 0};
    if (reinterpret_cast<uintptr_t>(address) % 8)
        fault(MISALIGNED, state.current, spot, "mbarrier at an address that is no multiple of 8");
    want_shared("mbarrier", address, 8, spot);
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
    std::erase_if(b.landed, [&](const BulkCopy& copy) {
        if (copy.phase == b.phase) return false;  // a phase that is not complete
        for (const Line& line : copy.lines) checks::land(line.to, line.size, copy.thread);
        checks::release(b.released, copy.thread);
        return true;
    });
    checks::acquire(b.released, state.current);
}

// A copy begins.
static void issue(PhaseBarrier& b, const void* barrier, BulkCopy&& copy) {
    if (state.launch->checked) {
        const uint32_t pc = checks::place(copy.spot.file, copy.spot.line);
        checks::read_by_proxy(static_cast<char*>(const_cast<void*>(barrier)), 8, pc);
        for (const Line& line : copy.lines) {
            if (line.end > line.begin)
                checks::access(const_cast<char*>(line.from) + line.begin, line.end - line.begin,
                               READ, pc);
            if (line.size) checks::access(line.to, line.size, WRITE | PENDING | ASYNC, pc);
        }
    }
    for (const Line& line : copy.lines) want_shared("bulk copy", line.to, line.size, copy.spot);
    state.busy = true;
    b.copies.push_back(std::move(copy));
    if (!state.launch->late_copies || !b.waiting.empty()) flush(b);
    state.busy = false;
}

EXPORT void copy_bulk(void* to, const void* from, int64_t size, void* address, const char* file,
                      int line) {
    const Spot spot{file, line, 0};
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | size) % 16)
        fault(MISALIGNED, state.current, spot,
              "bulk copy: addresses and size have to be multiples of 16");
    want_global("bulk copy", from, spot);
    PhaseBarrier& b = at("bulk copy", address, spot);
    state.busy = true;
    BulkCopy copy = {{{static_cast<char*>(to), static_cast<const char*>(from), size, 0, size, 0}},
                     size, state.current, 0, spot};
    state.busy = false;
    issue(b, address, std::move(copy));
}

// ---- copies of boxes, by tensor maps in the open: cuda/tensor_map.py makes them ----

constexpr int AXES = 5;
constexpr uint32_t MARK = 0x67706d31, SWIZZLE_128B = 3;
struct TensorMap {
    const char* start;
    int64_t strides[AXES];
    uint32_t lengths[AXES], box[AXES];
    uint32_t axes, itemsize, dtype, swizzle, fill, mark;
    uint32_t unused[4];
};
static_assert(sizeof(TensorMap) == 128);

static void check_map(const TensorMap& map, const void* to, int axes, Spot spot) {
    if (map.mark != MARK)
        fault(UNDEFINED, state.current, spot, "bulk copy by what is no tensor map");
    if (int(map.axes) != axes)
        fault(UNDEFINED, state.current, spot,
              "bulk copy of a box of %d axes by a tensor map of an array of %u", axes, map.axes);
    if (!map.box[0])
        fault(UNDEFINED, state.current, spot,
              "bulk copy by a tensor map without a box: the driver's are made of "
              "strided(array, box)");
    if (map.swizzle != SWIZZLE_128B || map.box[0] * map.itemsize != LINE || map.fill)
        fault(UNDEFINED, state.current, spot,
              "the emulator copies boxes whose lines have 128 bytes, swizzled, zeros outside");
    if (reinterpret_cast<uintptr_t>(to) % 128 || shared_address(to) % 128)
        fault(MISALIGNED, state.current, spot,
              "bulk copy of a box to a place that is no multiple of 128");
    if (reinterpret_cast<uintptr_t>(map.start) % 16)
        fault(MISALIGNED, state.current, spot,
              "bulk copy of a box of an array that starts at no multiple of 16");
}

EXPORT void copy_tensor(void* to, const void* described, const int* place, int axes, void* address,
                        const char* file, int line) {
    const Spot spot{file, line, 0};
    TensorMap map;
    memcpy(&map, described, sizeof map);
    check_map(map, to, axes, spot);
    PhaseBarrier& b = at("bulk copy", address, spot);
    int64_t count = 1;
    for (int axis = 1; axis < axes; axis++) count *= map.box[axis];
    char* at = static_cast<char*>(to);
    if (!in_shared(at, count * LINE))
        fault(OUT_OF_BOUNDS, state.current, spot,
              "bulk copy of a box of %lld bytes leaves the block's shared memory",
              static_cast<long long>(count * LINE));
    state.busy = true;
    BulkCopy copy = {{}, count * LINE, state.current, 0, spot};
    const int64_t width = map.itemsize, first = place[0];
    const int64_t begin = std::max<int64_t>(0, -first) * width;
    const int64_t end = std::min<int64_t>(map.box[0], int64_t(map.lengths[0]) - first) * width;
    for (int64_t i = 0; i < count; i++, at += LINE) {
        const char* from = map.start + first * width;
        bool exists = end > begin;
        int64_t rest = i;
        for (int axis = 1; axis < axes; axis++) {
            const int64_t where = place[axis] + rest % map.box[axis];
            rest /= map.box[axis];
            exists = exists && where >= 0 && where < map.lengths[axis];
            from += where * map.strides[axis];
        }
        const uint32_t swizzle = shared_address(at) / LINE % 8;  // by absolute addresses
        copy.lines.push_back({at, from, LINE, exists ? begin : 0, exists ? end : 0, swizzle});
    }
    state.busy = false;
    issue(b, address, std::move(copy));
}

}  // namespace gpugrad_emulator
