// The checked build: every load and store of a kernel arrives here (through hooks.cpp). A shadow
// memory with vector clocks tells races, reads of uninitialised memory and accesses out of bounds.
//
// Two accesses are ordered when a chain of synchronisations lies between them:
// - a barrier of the whole block starts a new `epoch`; what came before it is ordered;
// - within an epoch every warp has a clock that ticks at each of its synchronisations. `Clocks`
//   holds, per lane, up to which tick of each other lane of its warp it is ordered, and per warp
//   the same of other warps (named barriers);
// - across blocks: a fence and then an atomic publishes, the next atomic on that address acquires.
//
// A volatile access is strong, as an atomic is: the two do not race, and it publishes (a write) or
// acquires (a read) as one. Volatile accesses race with each other: code that leaves out fences, or
// __syncwarp, has them.
//
// What ordinary stores wrote reaches the asynchronous proxy (wgmma, bulk copies) only behind
// fence.proxy.async, by the thread that wrote, before that is ordered, or by the one whose wgmma or
// copy it is, after it is. That goes for what a copy overwrites and for its barrier, too.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include "internal.hpp"

namespace gpugrad_emulator {
namespace {

struct Access {
    uint32_t block;  // serial number over all launches of the process; 0: none
    uint32_t epoch : 29, log_size : 3;  // of the bytes, 0 if no vector has so many
    // atomic: in a cell's `write` and reads: volatile; pending: a copy or wgmma not waited for, whose
    // `clock` is its group if it reads; async: through the asynchronous proxy
    uint32_t thread : 10, atomic : 1, pending : 1, async : 1, clock : 19;
    uint32_t pc;  // relative to the kernel's library, or INTERNED | index into `spots`
};
constexpr uint32_t INTERNED = 1u << 31, CLOCK = 0x7ffff;

// What happened to `1 << shift` bytes of a region: the last write, and what came since then.
struct Cell {
    Access write, atomic, read, other_read;
};

struct Region {
    char* base;
    size_t size;
    Space space;
    int argument;
    bool writable;
    int shift;
    Cell* cells;
    uint8_t* uninitialised;  // one byte per byte, or null
};

struct Clocks {
    uint32_t now;
    uint32_t all;  // every lane is ordered after ticks below this of every lane
    bool partial;  // `lanes` has something beyond `all`
    uint32_t lanes[WARP][WARP];
    uint32_t warps[WARPS];
};

// What a thread published by an atomic after a fence.
struct Release {
    Access at;             // the fence
    uint32_t lanes[WARP];  // the thread's knowledge of its warp
    bool everywhere;       // else for its own block only
};

// Those of one block that are published together; all addresses share them.
using Releases = std::shared_ptr<const std::vector<Release>>;

// What was published at an address; of the running block: how many of its `settled`, which of its
// `fences` in this epoch, by their place, and how much each thread has acquired.
struct Published {
    std::vector<Releases> releases;
    uint32_t block, epoch;
    size_t settled;
    std::vector<bool> told;
    std::vector<size_t> seen;
};

struct Acquired {
    const std::vector<Releases>* releases;
    size_t count;
    Access by;
};

// The proxy fences of a thread: all of them as (epoch, clock), and what it knew at the last.
struct ProxyFences {
    std::vector<uint64_t> times;
    uint32_t epoch, lanes[WARP], warps[WARPS];
};

struct Marked {
    char* base;
    size_t size;
    uint8_t* bytes;
};

bool active;
uint32_t first_block, serial, epoch;
Clocks clocks[WARPS];
bool named;                   // a named barrier was used in this epoch
std::vector<Region> regions;  // global ones, by address
Region shared_region, dynamic_region;
Region* last_region;
std::vector<Spot> spots;
std::map<uintptr_t, Published> published;
std::vector<Acquired> acquired;
std::vector<Release> fences;    // of this epoch
std::vector<Releases> settled;  // of the block's epochs before
ProxyFences proxy_fences[MAX_THREADS];
bool any_proxy_fences;
int reading_group;  // of the read_async under way
std::vector<Marked> marked;
// A read of shared memory before any write: if a later write collides with it, it was a race, else
// it is reported when the block ends or anything else goes wrong.
Report early_read;
uint32_t last_pc;
Spot last_atomic;  // in both builds

// ---- memory for cells: never cleared, since a serial number from an earlier launch says "none"
struct Chunk {
    char* base;
    size_t size, used;
};
std::vector<Chunk> chunks;

Cell* make_cells(size_t count) {
    const size_t size = (count * sizeof(Cell) + 63) / 64 * 64;
    for (Chunk& chunk : chunks) {
        if (chunk.size - chunk.used < size) continue;
        chunk.used += size;
        return reinterpret_cast<Cell*>(chunk.base + chunk.used - size);
    }
    const size_t room = std::max<size_t>(size, 64 << 20);
    void* memory = mmap(nullptr, room, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        fault(MEMORY_FAULT, state.current, {nullptr, 0, 0},
              "no memory for the shadow of the arrays");
    chunks.push_back({static_cast<char*>(memory), room, size});
    return static_cast<Cell*>(memory);
}

void give_cells(Region& region, int shift) {
    region.shift = shift;
    region.cells = make_cells((region.size >> shift) + 1);
}

// Smaller cells, each with the history of the one it was part of.
void split(Region& region, int shift) {
    const Cell* old = region.cells;
    const int factor = region.shift - shift;
    give_cells(region, shift);
    for (size_t i = 0; i <= region.size >> shift; i++) region.cells[i] = old[i >> factor];
}

// ---- who is ordered before whom ----
inline Access here(uint32_t pc, int how, size_t size = 1) {
    const uint32_t t = state.current;
    const uint32_t clock = how == (READ | PENDING | ASYNC) ? reading_group : clocks[t / WARP].now;
    const uint32_t log_size = size > 16 || size & (size - 1) ? 0 : __builtin_ctzll(size);
    return {serial, epoch, log_size, t, (how & (ATOMIC | VOLATILE)) != 0, (how & PENDING) != 0,
            (how & ASYNC) != 0, clock & CLOCK, pc};
}

inline uint32_t known(int thread, int lane) {  // ticks of a lane of the same warp
    const Clocks& c = clocks[thread / WARP];
    return c.partial ? std::max(c.all, c.lanes[thread % WARP][lane]) : c.all;
}

inline bool ordered_in_block(const Access& a, int thread) {
    if (a.pending) return false;
    if (a.epoch != epoch || int(a.thread) == thread) return true;
    const int wa = a.thread / WARP, w = thread / WARP;
    if (wa == w) return a.clock < known(thread, a.thread % WARP);
    return named && a.clock < clocks[w].warps[wa];
}

bool covers(const Release& release, const Access& a) {
    if (release.at.block != a.block || !(release.everywhere || a.block == serial)) return false;
    if (a.epoch != release.at.epoch) return a.epoch < release.at.epoch;
    if (a.thread == release.at.thread) return a.clock <= release.at.clock;
    return a.thread / WARP == release.at.thread / WARP && a.clock < release.lanes[a.thread % WARP];
}

bool ordered_by_atomics(const Access& a, int thread) {
    for (const Acquired& q : acquired) {
        if (!ordered_in_block(q.by, thread)) continue;
        // releases of one address come in the order of the blocks
        auto begin = q.releases->begin(), end = begin + q.count;
        auto found = std::lower_bound(begin, end, a.block, [](const Releases& r, uint32_t block) {
            return r->front().at.block < block;
        });
        for (; found != end && (*found)->front().at.block == a.block; ++found)
            for (const Release& release : **found)
                if (covers(release, a)) return true;
    }
    return false;
}

uint64_t time_of(const Access& a) { return uint64_t(a.epoch) << 32 | a.clock; }

// Whether the asynchronous proxy sees what an ordinary store wrote, for a reader ordered behind it.
bool through_proxy(const Access& write, int reader) {
    const auto& times = proxy_fences[write.thread].times;
    const auto fence = std::lower_bound(times.begin(), times.end(), time_of(write));
    if (fence != times.end()) {
        Access at = write;
        at.epoch = static_cast<uint32_t>(*fence >> 32);
        at.clock = *fence & CLOCK;
        if (ordered_in_block(at, reader)) return true;
    }
    const ProxyFences& own = proxy_fences[reader];
    if (own.times.empty() || own.epoch < write.epoch) return false;
    if (own.epoch > write.epoch) return true;
    const int w = reader / WARP, writers = write.thread / WARP;
    return write.clock < (writers == w ? own.lanes[write.thread % WARP] : own.warps[writers]);
}

inline bool none(const Access& a, const Region& region) {
    return a.block < (region.space == GLOBAL || region.space == STATIC ? first_block : serial);
}

inline bool ordered(const Access& a, int thread) {
    if (a.block == serial && ordered_in_block(a, thread)) return true;
    return !acquired.empty() && ordered_by_atomics(a, thread);
}

// ---- reports ----
Spot spot_of(uint32_t pc) { return pc & INTERNED ? spots[pc & ~INTERNED] : Spot{nullptr, 0, pc}; }

uint32_t intern(const char* file, int line) {
    for (size_t i = 0; i < spots.size(); i++)
        if (spots[i].line == line && spots[i].file == file) return INTERNED | uint32_t(i);
    state.busy = true;
    spots.push_back({file, line, 0});
    state.busy = false;
    return INTERNED | uint32_t(spots.size() - 1);
}

void describe(Report& report, const Region& region, const char* address, size_t size) {
    report.space = region.space;
    report.argument = region.argument;
    report.offset = address - region.base;
    report.size = static_cast<int64_t>(size);
    report.extent = static_cast<int64_t>(region.size);
}

[[noreturn]] void race(const Region& region, char* address, size_t size, const Access& now,
                       bool write, const Access& before, bool before_wrote) {
    describe(*state.report, region, address, size);
    Report& report = *state.report;
    report.has_other = 1;
    set_block(report.other.block, before.block - first_block);
    set_thread(report.other.thread, before.thread);
    const Spot spot = spot_of(before.pc);
    report.other.pc = spot.pc;
    report.other.line = spot.line;
    strncpy(report.other.file, spot.file ? spot.file : "", sizeof report.other.file - 1);
    auto verb = [](const Access& a, bool wrote) {
        return a.atomic ? "atomic" : wrote ? "write" : "read";
    };
    if (before.pending)
        fault(RACE, state.current, spot_of(now.pc),
              "%s before the asynchronous %s this place has been waited for", verb(now, write),
              before_wrote ? "copy to" : "product (wgmma) of");
    if (now.async && before_wrote && ordered(before, state.current))
        fault(RACE, state.current, spot_of(now.pc),
              "%s through the asynchronous proxy (wgmma, bulk copy) of what an ordinary store or "
              "copy wrote, without fence.proxy.async between",
              verb(now, write));
    const bool hint = (before.atomic && !write) || (now.atomic && !before_wrote);
    fault(RACE, state.current, spot_of(now.pc), "%s after %s without synchronisation%s",
          verb(now, write), verb(before, before_wrote),
          hint ? " (beside atomics read by an atomic, or through a pointer to volatile)" : "");
}

[[noreturn]] void outside(char* address, size_t size, bool write, uint32_t pc) {
    const Region* nearest = nullptr;
    size_t distance = 1 << 20;
    auto consider = [&](const Region& r) {
        if (!r.size) return;
        const size_t d = address < r.base
                             ? r.base - address
                             : std::max<int64_t>(address + size - (r.base + r.size), 0);
        if (d < distance) distance = d, nearest = &r;
    };
    consider(shared_region);
    consider(dynamic_region);
    for (const Region& r : regions) consider(r);
    if (nearest) describe(*state.report, *nearest, address, size);
    const char* verb = write ? "write" : "read";
    if (address < reinterpret_cast<char*>(4096))
        fault(MEMORY_FAULT, state.current, spot_of(pc), "%s of %zu bytes through a null pointer",
              verb, size);
    if (address >= state.stacks && address < state.stacks_end)
        fault(OUT_OF_BOUNDS, state.current, spot_of(pc),
              "%s of %zu bytes in the local variables of another thread", verb, size);
    fault(OUT_OF_BOUNDS, state.current, spot_of(pc), "%s of %zu bytes outside of every array", verb,
          size);
}

// ---- one access ----
inline bool is_local(const char* address) {  // a local variable of the running thread
    return address >= state.stack && address < state.stack_end;
}

inline bool holds(const Region& r, char* address, size_t size) {
    return address >= r.base && address + size <= r.base + r.size;
}

Region* find(char* address, size_t size) {
    if (last_region && holds(*last_region, address, size)) return last_region;
    if (holds(shared_region, address, size)) return last_region = &shared_region;
    if (holds(dynamic_region, address, size)) return last_region = &dynamic_region;
    auto after = std::upper_bound(regions.begin(), regions.end(), address,
                                  [](char* a, const Region& r) { return a < r.base; });
    if (after == regions.begin() || !holds(*--after, address, size)) return nullptr;
    return last_region = &*after;
}

void note_read(Cell& cell, const Access& now, const Region& region, int thread) {
    if (cell.read.block == now.block && cell.read.epoch == now.epoch &&
        int(cell.read.thread) == thread) {
        const bool weak = cell.read.clock == now.clock && !cell.read.atomic;
        cell.read = now;
        if (weak) cell.read.atomic = 0;
    } else if (none(cell.read, region) || ordered(cell.read, thread)) {
        cell.read = now;
    } else if (none(cell.other_read, region) || ordered(cell.other_read, thread) ||
               (cell.other_read.thread / WARP == cell.read.thread / WARP &&
                now.thread / WARP != cell.read.thread / WARP && cell.other_read.block == serial)) {
        cell.other_read = now;  // better from another warp: a warp is ordered as a whole
    }
}

// Whether an unwritten cell, among those that the copy of a struct reads, may be padding: a gap
// smaller than a member that was written, up to where such a one could follow.
bool is_padding(const Region& region, size_t first, size_t last, size_t cell) {
    auto written = [&](size_t i) { return !none(region.cells[i].write, region); };
    size_t begin = cell, end = cell + 1;
    while (begin > first && !written(begin - 1)) begin--;
    while (end <= last && !written(end)) end++;
    const size_t size = (end - begin) << region.shift, place = (end - first) << region.shift;
    for (size_t i = first; i <= last; i++) {
        const size_t member = size_t(1) << region.cells[i].write.log_size;
        if (written(i) && member > size && place % member == 0) return true;
    }
    return false;
}

void use_named() {
    if (!named)
        for (int w = 0; w < WARPS; w++) memset(clocks[w].warps, 0, sizeof clocks[w].warps);
    named = true;
}

void learn(int warp, uint32_t lanes) {
    Clocks& c = clocks[warp];
    const uint32_t tick = ++c.now;
    if (lanes == 0xffffffffu) {
        c.all = tick;
        c.partial = false;
        return;
    }
    if (!c.partial) {
        for (auto& row : c.lanes) std::fill(row, row + WARP, c.all);
        c.partial = true;
    }
    uint32_t joined[WARP] = {};
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1)
            for (int i = 0; i < WARP; i++) joined[i] = std::max(joined[i], c.lanes[lane][i]);
    for (int i = 0; i < WARP; i++)
        if (lanes >> i & 1) joined[i] = tick;
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1) memcpy(c.lanes[lane], joined, sizeof joined);
}

// Writable data of the kernel's library: its __device__ variables.
void add_device_variables() {
    dl_iterate_phdr(
        [](dl_phdr_info* library, size_t, void*) {
            uintptr_t start = ~uintptr_t(0);
            for (int i = 0; i < library->dlpi_phnum; i++)
                if (library->dlpi_phdr[i].p_type == PT_LOAD)
                    start = std::min<uintptr_t>(start,
                                                library->dlpi_addr + library->dlpi_phdr[i].p_vaddr);
            if (start != state.code_base) return 0;
            for (int i = 0; i < library->dlpi_phnum; i++) {
                const auto& header = library->dlpi_phdr[i];
                if (header.p_type != PT_LOAD || header.p_flags & PF_X) continue;
                regions.push_back({reinterpret_cast<char*>(library->dlpi_addr + header.p_vaddr),
                                   header.p_memsz, STATIC, int(header.p_vaddr),
                                   (header.p_flags & PF_W) != 0, 2, nullptr, nullptr});
            }
            return 1;
        },
        nullptr);
}

}  // namespace

// The plain build does not see writes: what it may have written counts as written.
void forget_marks() {
    for (int i = 0; i < state.launch->array_count; i++) {
        const Array& a = state.launch->arrays[i];
        for (Marked& m : marked)
            if (a.base >= m.base && a.base + a.size <= m.base + m.size)
                memset(m.bytes + (a.base - m.base), 0, a.size);
    }
}

namespace checks {

void access(char* address, size_t size, int how, uint32_t pc) {
    if (!active) return;
    const bool write = how & WRITE, atomic = how & ATOMIC, strong = how & (ATOMIC | VOLATILE);
    if (is_local(address)) {
        if (sums_under_way) check_registers(address, size, write, spot_of(pc));
        if (write && fences_in_force) note_registers(address, size);
        return;
    }
    last_pc = pc;
    Region* region = find(address, size);
    if (!region) outside(address, size, write, pc);
    const int thread = state.current;
    const Access now = here(pc, how, size);
    const size_t offset = address - region->base;
    if (write && !region->writable) {
        describe(*state.report, *region, address, size);
        fault(READ_ONLY, thread, spot_of(pc), "write of %zu bytes to a read-only array", size);
    }
    const size_t unit = size_t(1) << region->shift;
    if ((offset | size) & (unit - 1)) {
        const int bits = __builtin_ctzll(offset | size);
        split(*region, bits);
    }
    if (region->uninitialised) {
        uint8_t* bytes = region->uninitialised + offset;
        if (!write || atomic)
            for (size_t i = 0; i < size; i++)
                if (bytes[i]) {
                    describe(*state.report, *region, address, size);
                    fault(UNINITIALISED, thread, spot_of(pc),
                          "read of %zu bytes nobody has written", size);
                }
        if (write) memset(bytes, 0, size);
    }
    const bool is_shared = region->space == SHARED || region->space == DYNAMIC;
    const size_t first = offset >> region->shift, last = (offset + size - 1) >> region->shift;
    for (size_t i = first; i <= last; i++) {
        Cell& cell = region->cells[i];
        auto collides = [&](const Access& a) {
            return !none(a, *region) && !(atomic && a.atomic) && !ordered(a, thread);
        };
        auto report = [&](Access before, bool before_atomic, bool before_wrote) {
            Access shown = now;
            shown.atomic = atomic;
            before.atomic = before_atomic;
            race(*region, address, size, shown, write, before, before_wrote);
        };
        if (collides(cell.write)) report(cell.write, false, true);
        if (!strong && collides(cell.atomic)) report(cell.atomic, true, true);
        if (is_shared && (!write || atomic) && !early_read.kind && none(cell.write, *region) &&
            none(cell.atomic, *region) && !is_padding(*region, first, last, i)) {
            early_read = {};
            describe(early_read, *region, address, size);
            set_report(early_read, UNINITIALISED, thread, spot_of(pc),
                       "read of %zu bytes of shared memory that no thread of the block has written",
                       size);
        }
        if (now.async && !cell.write.async && !none(cell.write, *region) &&
            !through_proxy(cell.write, thread))
            report(cell.write, false, true);
        if (!write) {
            note_read(cell, now, *region, thread);
            continue;
        }
        if (collides(cell.read)) report(cell.read, false, false);
        if (collides(cell.other_read)) report(cell.other_read, false, false);
        if (atomic) {
            if (cell.write.atomic) cell.write.block = 0;  // volatile: as atomics, the last one stays
            cell.atomic = now;
        } else {
            cell.write = now;
            cell.atomic.block = cell.read.block = cell.other_read.block = 0;
        }
    }
}

// What a strong access to `p` learns of those before, and tells those after of this block's fences.
static void synchronise(const char* p, bool reads, bool writes, uint32_t pc) {
    if ((fences.empty() && settled.empty() && published.empty()) || is_local(p)) return;
    state.busy = true;
    auto& [releases, block, since, known_settled, told, seen] =
        published[reinterpret_cast<uintptr_t>(p)];
    if (block != serial) block = serial, known_settled = 0, since = 0, seen.clear();
    if (since != epoch) since = epoch, told.clear();
    if (reads && !releases.empty()) {
        seen.resize(state.threads);
        size_t& count = seen[state.current];
        if (count < releases.size())
            acquired.push_back({&releases, releases.size(), here(pc, ATOMIC)});
        count = releases.size();
    }
    if (writes) {
        while (known_settled < settled.size()) releases.push_back(settled[known_settled++]);
        told.resize(fences.size());
        for (size_t i = 0; i < fences.size(); i++)
            if (!told[i] && ordered_in_block(fences[i].at, state.current)) {
                releases.push_back(std::make_shared<std::vector<Release>>(1, fences[i]));
                told[i] = true;
            }
    }
    state.busy = false;
}

void volatile_access(char* address, size_t size, int how, uint32_t pc) {
    access(address, size, how | VOLATILE, pc);
    if (active) synchronise(address, !(how & WRITE), how & WRITE, pc);
}

void begin_launch() {
    active = false;
    early_read.kind = NONE;
    last_pc = 0;
    last_atomic = {};
    if (!state.launch->checked) return forget_marks();
    regions.clear();
    published.clear();
    spots.clear();
    last_region = nullptr;
    size_t held = 0;
    for (Chunk& chunk : chunks) chunk.used = 0, held += chunk.size;
    if (serial > 0xf0000000u || held > size_t(1) << 30) {  // numbers come round, or much memory
        for (Chunk& chunk : chunks) munmap(chunk.base, chunk.size);
        chunks.clear();
        if (serial > 0xf0000000u) serial = 0;
    }
    first_block = serial + 1;
    for (int i = 0; i < state.launch->array_count; i++) {
        const Array& a = state.launch->arrays[i];
        if (a.size)
            regions.push_back(
                {a.base, a.size, GLOBAL, a.argument, a.writable != 0, 2, nullptr, nullptr});
    }
    add_device_variables();
    std::sort(regions.begin(), regions.end(),
              [](const Region& a, const Region& b) { return a.base < b.base; });
    size_t kept = 0;  // views of the same memory become one region
    for (size_t i = 1; i < regions.size(); i++) {
        Region &a = regions[kept], &b = regions[i];
        if (b.base < a.base + a.size) {
            a.size = std::max(a.base + a.size, b.base + b.size) - a.base;
            a.writable = a.writable || b.writable;
        } else {
            regions[++kept] = b;
        }
    }
    if (!regions.empty()) regions.resize(kept + 1);
    for (Region& region : regions) {
        give_cells(region, 2);
        for (const Marked& m : marked)
            if (region.base >= m.base && region.base + region.size <= m.base + m.size)
                region.uninitialised = m.bytes + (region.base - m.base);
    }
    shared_region = {state.static_shared, state.static_size, SHARED, 0, true, 2, nullptr, nullptr};
    dynamic_region = {
        state.dynamic_shared, state.launch->dynamic, DYNAMIC, 0, true, 2, nullptr, nullptr};
    give_cells(shared_region, 2);
    give_cells(dynamic_region, 2);
}

void begin_block() {
    if (!state.launch->checked) return;
    serial++;
    epoch = 0;
    early_read.kind = NONE;
    acquired.clear();
    fences.clear();
    settled.clear();
    if (any_proxy_fences)
        for (ProxyFences& f : proxy_fences) f.times.clear();
    any_proxy_fences = false;
    std::erase_if(published, [](const auto& entry) {  // shared memory is another block's now
        char* address = reinterpret_cast<char*>(entry.first);
        return holds(shared_region, address, 1) || holds(dynamic_region, address, 1);
    });
    sync_block();
    active = true;
}

void end_block() {
    if (active) settle(NONE);
}

void end_launch() { active = false; }

void settle(Kind kind) {
    if (!early_read.kind || kind == RACE) return;
    *state.report = early_read;
    siglongjmp(state.exit, 1);
}

Spot last_access() { return active ? spot_of(last_pc) : last_atomic; }

void sync_block() {
    if (!state.launch->checked) return;
    if (!fences.empty()) {
        state.busy = true;
        settled.push_back(std::make_shared<std::vector<Release>>(std::move(fences)));
        fences.clear();
        state.busy = false;
    }
    epoch++;
    named = false;
    for (int w = 0; w * WARP < state.threads; w++) {
        clocks[w].now = 1, clocks[w].all = 0, clocks[w].partial = false;
    }
}

void sync_warp(int warp, uint32_t lanes) {
    if (!active) return;
    const int threads = state.threads - warp * WARP;
    const uint32_t there = threads >= WARP ? ~0u : (1u << threads) - 1;
    learn(warp, (lanes & there) == there ? ~0u : lanes);
}

void sync_threads(const uint64_t* members) {
    if (!active) return;
    use_named();
    uint32_t joined[WARPS] = {};
    bool in[WARPS];
    for (int w = 0; w < WARPS; w++) {
        const uint32_t lanes = static_cast<uint32_t>(members[w / 2] >> w % 2 * 32);
        in[w] = lanes != 0;
        if (!lanes) continue;
        sync_warp(w, lanes);
        for (int i = 0; i < WARPS; i++) joined[i] = std::max(joined[i], clocks[w].warps[i]);
    }
    for (int w = 0; w < WARPS; w++)
        if (in[w]) joined[w] = clocks[w].now;
    for (int w = 0; w < WARPS; w++)
        if (in[w]) memcpy(clocks[w].warps, joined, sizeof joined);
}

void land(char* address, size_t size, int thread) {
    Region* region = active ? find(address, size) : nullptr;
    if (!region) return;
    const size_t offset = address - region->base;
    for (size_t i = offset >> region->shift; i <= (offset + size - 1) >> region->shift; i++) {
        Access& write = region->cells[i].write;
        if (!write.pending || int(write.thread) != thread) continue;
        write.pending = 0;
        write.epoch = epoch;
        write.clock = clocks[thread / WARP].now & CLOCK;
    }
}

void read_async(char* address, size_t size, int group, uint32_t pc) {
    reading_group = group;
    access(address, size, READ | PENDING | ASYNC, pc);
}

void read_by_proxy(char* address, size_t size, uint32_t pc) {
    Region* region = active ? find(address, size) : nullptr;
    if (!region) return;
    const size_t offset = address - region->base;
    for (size_t i = offset >> region->shift; i <= (offset + size - 1) >> region->shift; i++) {
        const Access& write = region->cells[i].write;
        if (!write.async && !none(write, *region) && !through_proxy(write, state.current))
            race(*region, address, size, here(pc, READ | ASYNC), false, write, true);
    }
}

void land_read(char* address, size_t size, int thread, int group) {
    Region* region = active ? find(address, size) : nullptr;
    if (!region) return;
    const size_t offset = address - region->base;
    for (size_t i = offset >> region->shift; i <= (offset + size - 1) >> region->shift; i++)
        for (Access* read : {&region->cells[i].read, &region->cells[i].other_read}) {
            if (!read->pending || int(read->thread) != thread) continue;
            if (((group - read->clock) & CLOCK) > CLOCK / 2) continue;  // a later product reads too
            read->pending = 0;
            read->epoch = epoch;
            read->clock = clocks[thread / WARP].now & CLOCK;
        }
}

void proxy_fence() {
    if (!active) return;
    const int t = state.current, w = t / WARP;
    state.busy = true;
    ProxyFences& f = proxy_fences[t];
    f.times.push_back(uint64_t(epoch) << 32 | (clocks[w].now & CLOCK));
    f.epoch = epoch;
    for (int i = 0; i < WARP; i++) f.lanes[i] = known(t, i);
    f.lanes[t % WARP] = ++clocks[w].now;  // what comes later is not covered
    for (int i = 0; i < WARPS; i++) f.warps[i] = named ? clocks[w].warps[i] : 0;
    any_proxy_fences = true;
    state.busy = false;
}

void release(Ticks& ticks, int thread) {
    if (!active) return;
    if (ticks.epoch != epoch) ticks = {};
    ticks.epoch = epoch;
    const int w = thread / WARP;
    if (named)
        for (int i = 0; i < WARPS; i++)
            ticks.warps[i] = std::max(ticks.warps[i], clocks[w].warps[i]);
    ticks.warps[w] = ++clocks[w].now;
    ticks.threads[thread / 64] |= uint64_t(1) << thread % 64;
}

// By warps: what one lane learns of another warp, all its lanes do.
void acquire(const Ticks& ticks, int thread) {
    if (!active || ticks.epoch != epoch) return;
    const int w = thread / WARP;
    use_named();
    for (int i = 0; i < WARPS; i++)
        clocks[w].warps[i] = std::max(clocks[w].warps[i], ticks.warps[i]);
    const uint32_t lanes = static_cast<uint32_t>(ticks.threads[w / 2] >> w % 2 * 32);
    if (lanes) sync_warp(w, lanes | 1u << thread % WARP);
}

uint32_t place(const char* file, int line) { return intern(file, line); }

}  // namespace checks

EXPORT void fence(bool everywhere) {
    if (!active) return;
    state.busy = true;
    const int t = state.current;
    Release release{here(0, READ), {}, everywhere};
    for (int i = 0; i < WARP; i++) release.lanes[i] = known(t, i);
    clocks[t / WARP].now++;  // what comes later is not covered
    fences.push_back(release);
    state.busy = false;
}

EXPORT void atomic_access(const void* p, size_t size, const char* file, int line) {
    may_spin(file, line);
    last_atomic = {file, line, 0};
    if (!active) return;
    char* address = static_cast<char*>(const_cast<void*>(p));
    if (reinterpret_cast<uintptr_t>(p) % size)
        fault(MISALIGNED, state.current, {file, line, 0},
              "atomic on %zu bytes at an address that is "
              "not a multiple of %zu",
              size, size);
    const uint32_t pc = intern(file, line);
    checks::access(address, size, WRITE | ATOMIC, pc);
    checks::synchronise(address, true, true, pc);
}

EXPORT void range_access(const void* p, size_t size, bool write, const char* file, int line) {
    if (active && size)
        checks::access(static_cast<char*>(const_cast<void*>(p)), size, write ? WRITE : READ,
                       intern(file, line));
}

// Marks bytes as not yet written, over launches; `bytes` says which, null none of them any more.
extern "C" EXPORT void gpugrad_mark(char* base, size_t size, const uint8_t* bytes) {
    for (size_t i = 0; i < marked.size(); i++)
        if (marked[i].base == base) {
            delete[] marked[i].bytes;
            marked.erase(marked.begin() + i);
            break;
        }
    if (!bytes) return;
    Marked m{base, size, new uint8_t[size]};
    memcpy(m.bytes, bytes, size);
    marked.push_back(m);
}

extern "C" EXPORT void gpugrad_marks(const char* base, size_t size, uint8_t* bytes) {
    for (const Marked& m : marked)
        if (m.base == base && m.size == size) memcpy(bytes, m.bytes, size);
}

}  // namespace gpugrad_emulator
