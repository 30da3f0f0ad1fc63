// Embedding: rows of a table that ids name, and the gradient of the table.
//
// ids (N) int32 or, if `wide`, int64; keys and order (N) int32, see sort_ids.cu; weight and dweight
// (V, C) of T, out and g (N, C) of T, partial (chunks, 2, C) float32.
// forward: out[n] = weight[ids[n]], NaN where an id is out of range; a warp copies a row of at most
// 128 packs.
// backward: dweight[i] = sum of g[n] over all n with ids[n] = i, in the order of n, in float32, and
// rounded once. `keys` are the ids in ascending order, `order` lists their n, -1 for those that
// count for nothing (padding, out of range), whose g is not read. A chunk is 32 of them; a warp
// adds up one chunk in a tile of 32 packs of columns. What of an id lies in one chunk goes to
// dweight; an id that crosses chunks leaves one partial sum in each, in the first slot of a chunk
// if it came from an earlier one, in the second if it begins there. embedding_join adds these.
// Which sums meet which depends on the ids alone.
// The warps behind those of the chunks write zeros to rows that no id names, of which each finds
// its 32 by a binary search in `keys`: every row is written once. Zeros everywhere first would be
// written twice where ids follow: for V = 50304, C = 768 and the 65536 tokens of a batch, which
// name some 11000 rows, 94 instead of 77 MB of bfloat16, and one more launch.
// Bytes: forward (N + min(N, V)) C sizeof(T), where rows read again come from the caches; backward
// (N + V) C sizeof(T), and at most 16 C per chunk for partial sums.  FLOPs: backward N C.
#include "ids.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int CHUNK = WARP;
constexpr int COPIES = 4;  // packs that a thread of the forward pass has under way
constexpr int ROWS = 4;    // rows that a warp of the backward pass has under way

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_forward(const void* __restrict__ ids, bool wide, const T* __restrict__ weight,
                      T* __restrict__ out, int64_t count, int64_t rows, int columns) {
    constexpr int WIDTH = WARP * COPIES * Pack::size;
    const int parts = static_cast<int>((static_cast<int64_t>(columns) + WIDTH - 1) / WIDTH);
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int64_t row = warp / parts;
    if (row >= count) return;
    const bool aligned = columns % Pack::size == 0 && aligned16(weight) && aligned16(out);
    const int64_t first =
        warp % parts * WIDTH + static_cast<int64_t>(threadIdx.x % WARP) * Pack::size;
    const int64_t id = id_at(ids, wide, row);
    const bool known = id >= 0 && id < rows;
    const T* from = weight + (known ? id * columns : 0);
    T* to = out + row * columns;
    Pack packs[COPIES];
#pragma unroll
    for (int k = 0; k < COPIES; k++) {
        const int64_t col = first + k * WARP * Pack::size;
        if (known) {
            packs[k] = load_part(from + col, columns - col, aligned);
        } else {
#pragma unroll
            for (T& value : packs[k].values) value = from_float(value_nan());
        }
    }
#pragma unroll
    for (int k = 0; k < COPIES; k++) {
        const int64_t col = first + k * WARP * Pack::size;
        store_part(to + col, packs[k], columns - col, aligned);
    }
}

// The key at a place, -1 outside.
__device__ __forceinline__ int key_at(const int* keys, int64_t place, int64_t count) {
    return place >= 0 && place < count ? keys[place] : -1;
}

// Sums in a tile of columns: those of a lane begin at `col`, and `width` of them exist.
struct Sums {
    float values[Pack::size];
    __device__ __forceinline__ Sums() {
#pragma unroll
        for (float& value : values) value = 0.0f;
    }
    __device__ __forceinline__ void add(const Pack& pack) {
#pragma unroll
        for (int e = 0; e < Pack::size; e++) values[e] += to_float(pack.values[e]);
    }
    __device__ __forceinline__ void add(const float* p, int width) {
#pragma unroll
        for (int e = 0; e < Pack::size; e++)
            if (e < width) values[e] += p[e];
    }
    __device__ __forceinline__ void store(float* p, int width) const {
#pragma unroll
        for (int e = 0; e < Pack::size; e++)
            if (e < width) p[e] = values[e];
    }
    __device__ __forceinline__ void store(T* p, int width, bool aligned) const {
        Pack pack;
#pragma unroll
        for (int e = 0; e < Pack::size; e++) pack.values[e] = from_float(values[e]);
        store_part(p, pack, width, aligned);
    }
};

// Zeros in rows [first, first + 32), a lane's part of a tile of columns, where no key is the row.
__device__ __forceinline__ void write_zeros(const int* keys, int64_t count, T* dweight,
                                            int64_t first, int64_t rows, int columns, int64_t col,
                                            bool aligned) {
    const int64_t row = first + threadIdx.x % WARP;
    int64_t low = 0, high = count;  // the first key that is not below the row lies between
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (keys[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    unsigned absent = __ballot_sync(FULL, row < rows && key_at(keys, low, count) != row);
    for (; absent; absent &= absent - 1)
        Sums().store(dweight + (first + __ffs(absent) - 1) * columns + col,
                     static_cast<int>(columns - col), aligned);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward(const int* __restrict__ keys, const int* __restrict__ order,
                       const T* __restrict__ g, T* __restrict__ dweight,
                       float* __restrict__ partial, int64_t count, int64_t rows, int columns) {
    constexpr int WIDTH = WARP * Pack::size;
    const int lane = threadIdx.x % WARP;
    const int tiles = static_cast<int>((static_cast<int64_t>(columns) + WIDTH - 1) / WIDTH);
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int64_t chunks = (count + CHUNK - 1) / CHUNK;
    const int64_t chunk = warp / tiles, start = chunk * CHUNK;
    const int64_t col = warp % tiles * WIDTH + static_cast<int64_t>(lane) * Pack::size;
    const bool aligned = columns % Pack::size == 0 && aligned16(g) && aligned16(dweight);
    if (chunk >= chunks) {
        const int64_t first = (chunk - chunks) * WARP;
        if (first < rows) write_zeros(keys, count, dweight, first, rows, columns, col, aligned);
        return;
    }
    const int width = static_cast<int>(columns - col);
    const int length = static_cast<int>(min(count - start, int64_t{CHUNK}));
    const int row = lane < length ? order[start + lane] : -1;
    const int key = key_at(keys, start + lane, count);
    const int before = key_at(keys, start - 1, count);
    const int after = key_at(keys, start + CHUNK, count);
    Sums sums;
#pragma unroll 1
    for (int first = 0; first < length; first += ROWS) {
        Pack packs[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            const int64_t from = __shfl_sync(FULL, row, first + k);
            if (from >= 0) packs[k] = load_part(g + from * columns + col, width, aligned);
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            const int place = first + k;
            const bool counts = __shfl_sync(FULL, row, place) >= 0;
            const int here = __shfl_sync(FULL, key, place);
            const int following = __shfl_sync(FULL, key, (place + 1) % CHUNK);
            const int next = place + 1 < CHUNK ? following : after;
            if (here < 0) continue;
            if (counts) sums.add(packs[k]);
            if (here == next && place + 1 < CHUNK) continue;
            if (here == next || here == before)
                sums.store(partial + (2 * chunk + (here != before)) * columns + col, width);
            else
                sums.store(dweight + static_cast<int64_t>(here) * columns + col, width, aligned);
            sums = Sums();
        }
    }
}

// Ids that cross chunks: a block takes the one that begins in its chunk and goes on in the next, if
// there is one, in one tile of columns; a warp adds every WARPS-th of its partial sums.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_join(const int* __restrict__ keys, const float* __restrict__ partial,
                   T* __restrict__ dweight, int64_t count, int columns) {
    constexpr int WIDTH = WARP * Pack::size;
    __shared__ float totals[WARPS][Pack::size][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned tiles = (static_cast<unsigned>(columns) + WIDTH - 1) / WIDTH;
    const int64_t chunk = blockIdx.x / tiles, end = (chunk + 1) * CHUNK;
    const int key = key_at(keys, end - 1, count);
    if (key != key_at(keys, end, count) || key == key_at(keys, chunk * CHUNK - 1, count)) return;
    // the last chunk that begins with the key: in steps that double, then in steps that halve
    int64_t last = chunk + 1, step = 1;
    for (; key_at(keys, (last + step) * CHUNK, count) == key; step *= 2) last += step;
    for (step /= 2; step > 0; step /= 2)
        if (key_at(keys, (last + step) * CHUNK, count) == key) last += step;
    const int64_t col =
        static_cast<int64_t>(blockIdx.x % tiles) * WIDTH + static_cast<int64_t>(lane) * Pack::size;
    const int width = static_cast<int>(columns - col);
    Sums sums;
    if (warp == 0) sums.add(partial + (2 * chunk + 1) * columns + col, width);
#pragma unroll 2
    for (int64_t c = chunk + 1 + warp; c <= last; c += WARPS)
        sums.add(partial + 2 * c * columns + col, width);
#pragma unroll
    for (int e = 0; e < Pack::size; e++) totals[warp][e][lane] = sums.values[e];
    __syncthreads();
    if (warp > 0) return;
    for (int w = 1; w < WARPS; w++) {
#pragma unroll
        for (int e = 0; e < Pack::size; e++) sums.values[e] += totals[w][e][lane];
    }
    const bool aligned = columns % Pack::size == 0 && aligned16(dweight);
    sums.store(dweight + static_cast<int64_t>(key) * columns + col, width, aligned);
}
