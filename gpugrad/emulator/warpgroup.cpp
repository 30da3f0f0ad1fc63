// Products of a warpgroup (wgmma): four warps, the right matrix in shared memory, asynchronous.
//
// A matrix in shared memory is found by the bits of its descriptor alone: start address, leading
// and stride offset, swizzle. So a wrong descriptor, or a tile written in another layout, gives
// wrong numbers here as on the GPU. From its issue to its wait a product may read its matrices and
// write its sums at any time: with `late_copies` it does so when it is waited for, else at once.
// Until then the registers of the sums hold poison, and in the checked build the places in shared
// memory count as being read. The checked build also sees what a thread writes to its registers
// behind a fence: a product may take none of them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "internal.hpp"

namespace gpugrad_emulator {

constexpr int GROUP = 4 * WARP;  // threads of a warpgroup
constexpr int GROUPS = MAX_THREADS / GROUP;
constexpr int DEPTH = 16;        // of the sums in one instruction
constexpr int WIDEST = 256;      // columns
constexpr uint32_t POISON = 0x7fa5a5a5;  // a NaN that no arithmetic makes

enum Flags : int { ADD = 1, BFLOAT16 = 2, TRANSPOSED_A = 4, TRANSPOSED_B = 8 };

// Accumulators under way: what they hold, and where each thread has them.
struct Sums {
    float* at[GROUP];
    bool taken[GROUP];  // given back to that thread
    int columns, group, missing;
    float values[64][WIDEST];
};

struct Product {
    uint64_t a, b;
    bool from_registers, done, landed;
    int flags, group, reader;  // `reader`: the thread in whose name shared memory is read
    float left[64][DEPTH];
    uint32_t fragments[GROUP][4];   // the registers of a
    const uint32_t* where[GROUP];
    Sums* sums;
    Spot spot;
};

// What a thread asks for while it waits for the others.
struct Request {
    float* sums;
    const uint32_t* a;
    uint64_t a_tile, b_tile;
    int columns, flags;
    Spot spot;
};

struct Warpgroup {
    int arrived;
    Request requests[GROUP];
    std::vector<std::unique_ptr<Product>> products;
    std::vector<std::unique_ptr<Sums>> sums;
};
static Warpgroup warpgroups[GROUPS];
static int committed[MAX_THREADS];
static bool fenced[MAX_THREADS], waiting[MAX_THREADS];
static bool any;
int sums_under_way, fences_in_force;

// Local variables that a thread has written since its fence.
struct Span {
    const char *begin, *end;
};
static std::vector<Span> written[MAX_THREADS];

void begin_warpgroups() {
    if (!any) return;
    any = false;
    for (Warpgroup& w : warpgroups) {
        w.arrived = 0;
        w.products.clear();
        w.sums.clear();
    }
    memset(committed, 0, sizeof committed);
    memset(fenced, 0, sizeof fenced);
    memset(waiting, 0, sizeof waiting);
    for (auto& spans : written) spans.clear();
    sums_under_way = fences_in_force = 0;
}

// ---- addresses in shared memory: dynamic, then static ----

// A block's memory starts behind what the system keeps; DYN_SMEM promises a multiple of 128 only.
constexpr uint32_t SHARED_START = 1024 + 128;

static uint32_t dynamic_end() {
    return (SHARED_START + static_cast<uint32_t>(state.launch->dynamic) + 1023) / 1024 * 1024;
}

EXPORT uint32_t shared_address(const void* p) {
    const char* at = static_cast<const char*>(p);
    if (at >= state.static_shared && at < state.static_shared + state.static_size)
        return dynamic_end() + static_cast<uint32_t>(at - state.static_shared);
    return SHARED_START + static_cast<uint32_t>(at - state.dynamic_shared);
}

static char* at_address(uint32_t address) {
    if (address < dynamic_end()) return state.dynamic_shared + (int64_t(address) - SHARED_START);
    return state.static_shared + (address - dynamic_end());
}

// ---- matrices by descriptor ----

// The 16 bytes that hold eight neighbours along the contiguous axis of a matrix (rows, 16). Offsets
// in units of 16 bytes; `span` of them, 1 without swizzle, make up a line. (PTX ISA: strides and
// layouts of wgmma; the four low bits of addresses are not in the descriptor.)
static char* chunk_of(uint64_t tile, bool transposed, int row, int col) {
    const uint32_t start = tile & 0x3fff, leading = tile >> 16 & 0x3fff;
    const uint32_t stride = tile >> 32 & 0x3fff;
    const int mode = static_cast<int>(tile >> 62), bits = mode == 0 ? 0 : 4 - mode;
    const int span = 1 << bits;
    uint32_t offset;
    if (!transposed)  // lines along a row
        offset = row % 8 * span + row / 8 * stride + (bits ? col / 8 : col / 8 * leading);
    else if (bits)  // lines along a column
        offset = row / 8 % span + row / 8 / span * leading + col % 8 * span + col / 8 * stride;
    else
        offset = row / 8 * stride + col % 8 + col / 8 * leading;
    uint32_t address = (start + offset) << 4 & 0x3ffff;
    address ^= (address >> 7 & (span - 1)) << 4;  // the swizzle, of absolute addresses
    return at_address(address);
}

template <class F>
static void each_chunk(uint64_t tile, bool transposed, int rows, F f) {
    if (transposed)
        for (int row = 0; row < rows; row += 8)
            for (int col = 0; col < DEPTH; col++) f(row, col, chunk_of(tile, true, row, col));
    else
        for (int row = 0; row < rows; row++)
            for (int col = 0; col < DEPTH; col += 8) f(row, col, chunk_of(tile, false, row, col));
}

static float widen(uint16_t half, bool bfloat16) {
    if (bfloat16) {
        const uint32_t bits = uint32_t(half) << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    _Float16 x;
    memcpy(&x, &half, sizeof x);
    return static_cast<float>(x);
}

// out[row * row_step + col * col_step], from shared memory as it is now
template <class Out>
static void read_tile(uint64_t tile, bool transposed, int rows, bool bfloat16, Out* out,
                      int row_step, int col_step) {
    each_chunk(tile, transposed, rows, [&](int row, int col, const char* chunk) {
        for (int i = 0; i < 8; i++) {
            uint16_t half;
            memcpy(&half, chunk + 2 * i, sizeof half);
            const int r = transposed ? row + i : row, c = transposed ? col : col + i;
            out[r * row_step + c * col_step] = widen(half, bfloat16);
        }
    });
}

bool in_shared(const char* p, int64_t size) {
    const auto holds = [&](const char* base, uint64_t room) {
        return p >= base && p + size <= base + room;
    };
    return holds(state.dynamic_shared, state.launch->dynamic) ||
           holds(state.static_shared, state.static_size);
}

void want_shared(const char* op, const void* p, int64_t size, Spot spot) {
    if (!in_shared(static_cast<const char*>(p), size))
        fault(OUT_OF_BOUNDS, state.current, spot,
              "%s: %lld bytes that are not in the block's shared memory", op,
              static_cast<long long>(size));
}

void want_global(const char* op, const void* p, Spot spot) {
    if (in_shared(static_cast<const char*>(p), 1))
        fault(OUT_OF_BOUNDS, state.current, spot, "%s from shared memory, not from global", op);
}

static void check_tile(const char* which, uint64_t tile, bool transposed, int rows, Spot spot) {
    if (tile >> 49 & 7)
        fault(UNDEFINED, state.current, spot,
              "wgmma: matrix %s has a base offset; the emulator knows tiles only whose swizzle "
              "starts at a multiple of 1024 bytes",
              which);
    each_chunk(tile, transposed, rows, [&](int row, int col, const char* chunk) {
        if (in_shared(chunk, 16)) return;
        fault(OUT_OF_BOUNDS, state.current, spot,
              "wgmma: the descriptor 0x%016llx of matrix %s leaves the block's shared memory at "
              "row %d, column %d",
              static_cast<unsigned long long>(tile), which, row, col);
    });
}

// In the checked build: shared memory is being read from now on, until the product is waited for.
static void begin_reading(const Product& p) {
    if (!state.launch->checked) return;
    const uint32_t pc = checks::place(p.spot.file, p.spot.line);
    auto read = [&](int, int, char* chunk) { checks::read_async(chunk, 16, p.group, pc); };
    if (!p.from_registers) each_chunk(p.a, p.flags & TRANSPOSED_A, 64, read);
    each_chunk(p.b, p.flags & TRANSPOSED_B, p.sums->columns, read);
}

static void end_reading(const Product& p) {
    if (!state.launch->checked) return;
    auto land = [&](int, int, char* chunk) { checks::land_read(chunk, 16, p.reader, p.group); };
    if (!p.from_registers) each_chunk(p.a, p.flags & TRANSPOSED_A, 64, land);
    each_chunk(p.b, p.flags & TRANSPOSED_B, p.sums->columns, land);
}

// ---- what a product computes ----

// Sums in double, rounded once per product, as those of mma.
__attribute__((optimize("O3"))) static void add_products(float* sums, const float* left,
                                                         const double* right, int columns) {
    double total[WIDEST];
    for (int n = 0; n < columns; n++) total[n] = sums[n];
    for (int k = 0; k < DEPTH; k++) {
        const double x = left[k];
        const double* y = right + k * WIDEST;
        for (int n = 0; n < columns; n++) total[n] += x * y[n];
    }
    for (int n = 0; n < columns; n++) sums[n] = static_cast<float>(total[n]);
}

static void compute(Product& p) {
    if (p.done) return;
    p.done = true;
    static double right[DEPTH][WIDEST];
    const bool bfloat16 = p.flags & BFLOAT16;
    if (!p.from_registers)
        read_tile(p.a, p.flags & TRANSPOSED_A, 64, bfloat16, &p.left[0][0], DEPTH, 1);
    read_tile(p.b, p.flags & TRANSPOSED_B, p.sums->columns, bfloat16, &right[0][0], 1, WIDEST);
    for (int row = 0; row < 64; row++) {
        float* sums = p.sums->values[row];
        if (!(p.flags & ADD)) memset(sums, 0, p.sums->columns * sizeof *sums);
        add_products(sums, p.left[row], &right[0][0], p.sums->columns);
    }
}

// Thread t holds of sums (64, N), with w, g and q its warp, lane / 4 and lane % 4: rows 16 w + g
// and 8 further on of columns 8 j + 2 q and the next, in this order for every j.
static int row_of(int t, int i) { return t / WARP * 16 + t % WARP / 4 + i % 4 / 2 * 8; }
static int column_of(int t, int i) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

static void poison(float* at, int columns) {
    for (int i = 0; i < columns / 2; i++) memcpy(at + i, &POISON, sizeof POISON);
}

// The thread's part of sums that are complete.
static void give_back(Sums& sums, int t, int thread, Spot spot) {
    float* at = sums.at[t];
    for (int i = 0; i < sums.columns / 2; i++)
        if (memcmp(at + i, &POISON, sizeof POISON))
            fault(RACE, thread, spot,
                  "registers of a wgmma were written before it has been waited for (element %d of "
                  "its sums)",
                  i);
    for (int i = 0; i < sums.columns / 2; i++) at[i] = sums.values[row_of(t, i)][column_of(t, i)];
    sums.taken[t] = true;
    sums.missing--;
    sums_under_way--;
}

static Sums* find_sums(Warpgroup& w, int first) {
    for (auto& sums : w.sums) {
        const Request& r = w.requests[0];
        if (sums->at[0] != r.sums || sums->columns != r.columns || sums->taken[0]) continue;
        for (int t = 0; t < GROUP; t++)
            if (sums->at[t] != w.requests[t].sums || sums->taken[t])
                fault(WARP_MISMATCH, first + t, r.spot,
                      "wgmma: some threads of the warpgroup have waited for these sums, others "
                      "have not");
        return sums.get();
    }
    w.sums.push_back(std::make_unique<Sums>());
    Sums& sums = *w.sums.back();
    sums.columns = w.requests[0].columns;
    sums.missing = GROUP;
    sums_under_way += GROUP;
    for (int t = 0; t < GROUP; t++) {
        float* at = sums.at[t] = w.requests[t].sums;
        sums.taken[t] = false;
        for (int i = 0; i < sums.columns / 2; i++)
            sums.values[row_of(t, i)][column_of(t, i)] = at[i];
        poison(at, sums.columns);
    }
    return &sums;
}

static void take_fragments(Product& p, const Warpgroup& w) {
    const bool bfloat16 = p.flags & BFLOAT16;
    for (int t = 0; t < GROUP; t++) {
        p.where[t] = w.requests[t].a;
        memcpy(p.fragments[t], p.where[t], sizeof p.fragments[t]);
        for (int i = 0; i < 8; i++) {
            const int row = t / WARP * 16 + t % WARP / 4 + i / 2 % 2 * 8;
            const int col = t % 4 * 2 + i / 4 * 8 + i % 2;
            p.left[row][col] =
                widen(static_cast<uint16_t>(p.fragments[t][i / 2] >> 16 * (i % 2)), bfloat16);
        }
    }
}

// All 128 threads are here: the product begins.
static void issue(Warpgroup& w, int first) {
    const Request& r = w.requests[0];
    const bool from_registers = r.a != nullptr;
    if (!from_registers) check_tile("a", r.a_tile, r.flags & TRANSPOSED_A, 64, r.spot);
    check_tile("b", r.b_tile, r.flags & TRANSPOSED_B, r.columns, r.spot);
    Sums* sums = find_sums(w, first);
    sums->group = committed[first];
    w.products.push_back(std::make_unique<Product>());
    Product& p = *w.products.back();
    p.a = r.a_tile, p.b = r.b_tile, p.from_registers = from_registers;
    p.flags = r.flags, p.group = sums->group, p.reader = state.current;
    p.sums = sums, p.spot = r.spot;
    if (from_registers) take_fragments(p, w);
    begin_reading(p);
    if (!state.launch->late_copies) compute(p);
}

static void check_fenced(const void* registers, size_t size, const char* which, Spot spot) {
    const char* at = static_cast<const char*>(registers);
    for (const Span& span : written[state.current])
        if (span.begin < at + size && at < span.end)
            fault(WARP_MISMATCH, state.current, spot,
                  "registers of a wgmma, %s, were written behind the wgmma_fence before it", which);
}

EXPORT void wgmma(float* sums, int columns, const uint32_t* a, uint64_t a_tile, uint64_t b_tile,
                  int flags, const char* file, int line) {
    const int thread = state.current, first = thread / GROUP * GROUP;
    const Spot spot{file, line, 0};
    if (first + GROUP > state.threads)
        fault(WARP_MISMATCH, thread, spot,
              "wgmma needs four whole warps, of which the first is a multiple of four");
    if (!fenced[thread])
        fault(WARP_MISMATCH, thread, spot,
              "wgmma without wgmma_fence since the start or the last wgmma_wait");
    if (columns % 8 || columns < 8 || columns > WIDEST)
        fault(WARP_MISMATCH, thread, spot, "wgmma for %d columns", columns);
    check_fenced(sums, columns / 2 * sizeof *sums, "its sums", spot);
    if (a) check_fenced(a, sizeof Product::fragments[0], "its matrix a", spot);
    Warpgroup& w = warpgroups[thread / GROUP];
    w.requests[thread - first] = {sums, a, a_tile, b_tile, columns, flags, spot};
    any = true;
    if (w.arrived) {
        int other = first;  // one that waits
        while (other == thread || !waiting[other]) other++;
        const Request& r = w.requests[other - first];
        if (r.columns != columns || r.flags != flags || (r.a != nullptr) != (a != nullptr) ||
            r.a_tile != a_tile || r.b_tile != b_tile || r.spot.line != line ||
            committed[other] != committed[thread])
            fault(WARP_MISMATCH, thread, spot,
                  "thread %d issues another wgmma than thread %d of its warpgroup at %s:%d: place, "
                  "shape, descriptors or the number of groups before it differ",
                  thread, other, r.spot.file, r.spot.line);
    }
    if (++w.arrived < GROUP) {
        waiting[thread] = true;
        park_at("wgmma", file, line);
        return;
    }
    state.busy = true;
    w.arrived = 0;
    issue(w, first);
    for (int t = first; t < first + GROUP; t++)
        if (t != thread) {
            waiting[t] = false;
            make_runnable(t);
        }
    state.busy = false;
}

EXPORT void wgmma_fence() {
    fences_in_force += !fenced[state.current];
    fenced[state.current] = any = true;
    written[state.current].clear();
}

EXPORT void proxy_fence() { checks::proxy_fence(); }

EXPORT void wgmma_commit() { committed[state.current]++, any = true; }

// Until at most `pending` of the newest groups are under way.
EXPORT void wgmma_wait(int pending, const char* file, int line) {
    const int thread = state.current, t = thread % GROUP, before = committed[thread] - pending;
    Warpgroup& w = warpgroups[thread / GROUP];
    const Spot spot{file, line, 0};
    fences_in_force -= fenced[thread];
    fenced[thread] = false;
    state.busy = true;
    written[thread].clear();
    for (auto& p : w.products) {
        if (p->group >= before) continue;
        compute(*p);
        if (p->from_registers && p->where[t]) {
            if (memcmp(p->where[t], p->fragments[t], sizeof p->fragments[t]))
                fault(RACE, thread, p->spot,
                      "registers of a wgmma, its matrix a, were written before it has been waited "
                      "for");
            p->where[t] = nullptr;
        }
        if (p->reader == thread && !p->landed) {
            p->landed = true;
            end_reading(*p);
        }
    }
    for (auto& sums : w.sums)
        if (sums->group < before && !sums->taken[t]) give_back(*sums, t, thread, spot);
    std::erase_if(w.products, [&](const auto& p) { return p->sums->missing == 0; });
    std::erase_if(w.sums, [](const auto& sums) { return sums->missing == 0; });
    state.busy = false;
}

void note_registers(const char* address, size_t size) {
    if (!fenced[state.current]) return;
    auto& spans = written[state.current];
    for (Span& span : spans)
        if (span.begin <= address + size && address <= span.end) {  // or next to each other
            span = {std::min(span.begin, address), std::max(span.end, address + size)};
            return;
        }
    state.busy = true;
    spans.push_back({address, address + size});
    state.busy = false;
}

void check_registers(const char* address, size_t size, bool write, Spot spot) {
    const int thread = state.current, t = thread % GROUP;
    for (auto& sums : warpgroups[thread / GROUP].sums) {
        if (sums->taken[t]) continue;
        const char* at = reinterpret_cast<const char*>(sums->at[t]);
        if (address + size <= at || address >= at + sums->columns / 2 * sizeof(float)) continue;
        fault(RACE, thread, spot, "%s of the registers of a wgmma that has not been waited for",
              write ? "write" : "read");
    }
}

}  // namespace gpugrad_emulator
