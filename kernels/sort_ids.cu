// Ids in ascending order with their positions, equal ids in the order in which they stand.
//
// ids (N) int32 or, if `wide`, int64; keys and order (N) int32: keys are the ids, sorted, order the
// positions where they stood. Keys lie in [0, rows). An id outside is given the key rows - 1, and
// it and the id `padding` get -1 as position: whoever adds rows up by this order leaves them out.
//
// A radix sort from the lowest digit of 8 bits to the highest that rows - 1 has. In one pass a tile
// of keys is read, by each warp a stretch of its own, 32 keys at a time: lanes with the same digit
// (match_any) get ranks by their lane, behind the keys the warp has counted before. Where a digit
// begins is then a sum over digits, blocks and warps in that order, so the order is the only one.
// sort_ids_block: up to TILE ids, all passes, in one block.
// sort_ids_count, and sort_ids_place once per pass: a block has `share` ids, a multiple of THREADS.
// counts (passes, blocks, DIGITS) int32 says how often each digit occurs among the keys of a block;
// a pass adds up those for the next one, where its keys go (integers: in any order the same).
// Bytes: 4 or 8 N read, then 16 N per pass; counts are read by every block, so there should not be
// more than a hundred or two.  FLOPs: 0.
#include "ids.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int BITS = 8, DIGITS = 1 << BITS;
constexpr int ITEMS = 16, TILE = THREADS * ITEMS;
static_assert(DIGITS == THREADS, "a thread has a digit");

struct Item {
    int key, position;
};

__device__ __forceinline__ Item item_at(const void* ids, bool wide, int64_t i, int rows,
                                        int padding) {
    const int64_t id = id_at(ids, wide, i);
    if (id < 0 || id >= rows) return {rows - 1, -1};
    return {static_cast<int>(id), id == padding ? -1 : static_cast<int>(i)};
}

__device__ __forceinline__ int digit_of(int key, int shift) { return key >> shift & (DIGITS - 1); }

// The sum over the threads before this one.
__device__ __forceinline__ int sum_before(int x, int* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int sum = x;
    for (int offset = 1; offset < WARP; offset *= 2) {
        const int below = __shfl_up_sync(FULL, sum, offset);
        if (lane >= offset) sum += below;
    }
    if (lane == WARP - 1) scratch[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; w++) sum += scratch[w];
    return sum - x;
}

// The keys of a tile, `length` in all: a warp has those from its number times `stretch` on.
struct Tile {
    int length, stretch;
    __device__ __forceinline__ explicit Tile(int length)
        : length(length), stretch((length + THREADS - 1) / THREADS * WARP) {}
    __device__ __forceinline__ int index(int k) const {
        return static_cast<int>(threadIdx.x / WARP) * stretch + k * WARP +
               static_cast<int>(threadIdx.x % WARP);
    }
    // whether the warp has a k-th key, and this lane one
    __device__ __forceinline__ bool any(int k) const {
        return k * WARP < stretch && index(k) - static_cast<int>(threadIdx.x % WARP) < length;
    }
    __device__ __forceinline__ bool has(int k) const {
        return k * WARP < stretch && index(k) < length;
    }
};

// Counts the digits of the warps' keys: ranks are among a warp's equal digits. Returns how often
// this thread's digit occurs in the tile.
__device__ __forceinline__ int count_digits(const Tile& tile, const Item (&items)[ITEMS], int shift,
                                            int (&ranks)[ITEMS], int (*counts)[DIGITS]) {
    const int lane = threadIdx.x % WARP;
    int* own = counts[threadIdx.x / WARP];
    for (int d = lane; d < DIGITS; d += WARP) own[d] = 0;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < ITEMS; k++) {
        if (!tile.any(k)) continue;
        const bool here = tile.has(k);
        const int digit = here ? digit_of(items[k].key, shift) : DIGITS;
        const unsigned equal = __match_any_sync(FULL, digit);
        const int before = __popc(equal & ((1u << lane) - 1));
        ranks[k] = here ? own[digit] + before : 0;
        __syncwarp();
        if (here && before == 0) own[digit] += __popc(equal);
        __syncwarp();
    }
    __syncthreads();
    int total = 0;
    for (int w = 0; w < WARPS; w++) total += counts[w][threadIdx.x];
    return total;
}

// Turns the counts into the places where each warp's keys of a digit begin, this thread's digit
// beginning at `start`.
__device__ __forceinline__ void place_digits(int start, int (*counts)[DIGITS]) {
    for (int w = 0; w < WARPS; w++) {
        const int count = counts[w][threadIdx.x];
        counts[w][threadIdx.x] = start;
        start += count;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sort_ids_block(const void* __restrict__ ids, bool wide, int* __restrict__ keys,
                   int* __restrict__ order, int count, int rows, int padding, int passes) {
    __shared__ int counts[WARPS][DIGITS], scratch[WARPS];
    __shared__ int sorted_keys[TILE], sorted_positions[TILE];
    const Tile tile(count);
    const int warp = threadIdx.x / WARP;
    Item items[ITEMS] = {};
    int ranks[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; k++)
        if (tile.has(k)) items[k] = item_at(ids, wide, tile.index(k), rows, padding);
    for (int pass = 0;; pass++) {
        const int shift = pass * BITS;
        const int total = count_digits(tile, items, shift, ranks, counts);
        place_digits(sum_before(total, scratch), counts);
        const bool last = pass + 1 == passes;
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            if (!tile.has(k)) continue;
            const int place = counts[warp][digit_of(items[k].key, shift)] + ranks[k];
            (last ? keys : sorted_keys)[place] = items[k].key;
            (last ? order : sorted_positions)[place] = items[k].position;
        }
        if (last) return;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ITEMS; k++)
            if (tile.has(k))
                items[k] = {sorted_keys[tile.index(k)], sorted_positions[tile.index(k)]};
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sort_ids_count(const void* __restrict__ ids, bool wide, int* __restrict__ counts, int count,
                   int rows, int padding, int share, int passes) {
    __shared__ int found[DIGITS];
    found[threadIdx.x] = 0;
    __syncthreads();
    const int64_t first = static_cast<int64_t>(blockIdx.x) * share;
    const int64_t end = min(first + share, static_cast<int64_t>(count));
#pragma unroll 4
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS)
        atomicAdd(&found[digit_of(item_at(ids, wide, i, rows, padding).key, 0)], 1);
    __syncthreads();
    int* own = counts + blockIdx.x * DIGITS + threadIdx.x;
    *own = found[threadIdx.x];
    for (int pass = 1; pass < passes; pass++)
        own[static_cast<int64_t>(pass) * gridDim.x * DIGITS] = 0;
}

// One pass: from ids, or from keys and positions where `ids` is null. `next` are the counts of the
// next pass, null in the last one.
extern "C" __global__ void __launch_bounds__(THREADS)
    sort_ids_place(const void* __restrict__ ids, bool wide, const int* __restrict__ from_keys,
                   const int* __restrict__ from_order, int* __restrict__ keys,
                   int* __restrict__ order, const int* __restrict__ found, int* next, int count,
                   int rows, int padding, int share, int shift) {
    __shared__ int counts[WARPS][DIGITS], scratch[WARPS];
    const int warp = threadIdx.x / WARP;
    int before = 0, all = 0;
#pragma unroll 4
    for (unsigned b = 0; b < gridDim.x; b++) {
        const int here = found[b * DIGITS + threadIdx.x];
        if (b < blockIdx.x) before += here;
        all += here;
    }
    int start = sum_before(all, scratch) + before;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * share;
    const int64_t end = min(first + share, static_cast<int64_t>(count));
    for (int64_t at = first; at < end; at += TILE) {
        const Tile tile(static_cast<int>(min(end - at, int64_t{TILE})));
        Item items[ITEMS] = {};
        int ranks[ITEMS];
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            if (!tile.has(k)) continue;
            const int64_t i = at + tile.index(k);
            if (ids)
                items[k] = item_at(ids, wide, i, rows, padding);
            else
                items[k] = {from_keys[i], from_order[i]};
        }
        const int total = count_digits(tile, items, shift, ranks, counts);
        place_digits(start, counts);
        start += total;
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            if (!tile.has(k)) continue;
            const int place = counts[warp][digit_of(items[k].key, shift)] + ranks[k];
            keys[place] = items[k].key;
            order[place] = items[k].position;
            if (next)
                atomicAdd(&next[place / share * DIGITS + digit_of(items[k].key, shift + BITS)], 1);
        }
        __syncwarp();
    }
}
