// Embedding: rows of a table that ids name, and the gradient of the table.
//
// ids, order (N) int64, weight and dweight (V, C) of T, out and g (N, C) of T, partial
// (chunks, 2, C) float32.
// forward: out[n] = weight[ids[n]]; a warp copies a row of at most 128 packs. Ids are in range.
// backward: dweight[i] = sum of g[n] over all n with ids[n] = i, in the order of n, in float32, and
// rounded once. `order` lists the n so that their ids ascend, equal ids in order. A chunk is 32 of
// them; a warp adds up one chunk in a tile of 32 packs of columns. What of an id lies in one chunk
// goes to dweight; an id that crosses chunks leaves one partial sum in each, in the first slot of a
// chunk if it came from an earlier one, in the second if it begins there. embedding_join adds
// these. Which sums meet which depends on the ids alone. Rows of dweight whose id does not occur,
// and the row `padding`, are not written (and the rows of g of `padding` not read).
// Bytes: forward (N + min(N, V)) C sizeof(T), where rows read again come from the caches; backward
// N C sizeof(T) and at most 2 V C sizeof(T) (with the zeros written before), and at most 16 C per
// chunk for partial sums.  FLOPs: backward N C.
#include "common.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int CHUNK = WARP;
constexpr int COPIES = 4;  // packs that a thread of the forward pass has under way
constexpr int ROWS = 4;    // rows that a warp of the backward pass has under way

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_forward(const int64_t* __restrict__ ids, const T* __restrict__ weight,
                      T* __restrict__ out, int64_t count, int columns) {
    constexpr int WIDTH = WARP * COPIES * Pack::size;
    const int parts = static_cast<int>((static_cast<int64_t>(columns) + WIDTH - 1) / WIDTH);
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int64_t row = warp / parts;
    if (row >= count) return;
    const bool aligned = columns % Pack::size == 0 && aligned16(weight) && aligned16(out);
    const int64_t first =
        warp % parts * WIDTH + static_cast<int64_t>(threadIdx.x % WARP) * Pack::size;
    const T* from = weight + ids[row] * columns;
    T* to = out + row * columns;
    Pack packs[COPIES];
#pragma unroll
    for (int k = 0; k < COPIES; k++) {
        const int64_t col = first + k * WARP * Pack::size;
        packs[k] = load_part(from + col, columns - col, aligned);
    }
#pragma unroll
    for (int k = 0; k < COPIES; k++) {
        const int64_t col = first + k * WARP * Pack::size;
        store_part(to + col, packs[k], columns - col, aligned);
    }
}

// The id at a place of the order, -1 outside.
__device__ __forceinline__ int64_t id_at(const int64_t* ids, const int64_t* order, int64_t place,
                                         int64_t count) {
    return place >= 0 && place < count ? ids[order[place]] : -1;
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

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward(const int64_t* __restrict__ ids, const int64_t* __restrict__ order,
                       const T* __restrict__ g, T* __restrict__ dweight,
                       float* __restrict__ partial, int64_t count, int columns, int64_t padding) {
    constexpr int WIDTH = WARP * Pack::size;
    const int lane = threadIdx.x % WARP;
    const int tiles = static_cast<int>((static_cast<int64_t>(columns) + WIDTH - 1) / WIDTH);
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int64_t chunk = warp / tiles, start = chunk * CHUNK;
    if (start >= count) return;
    const int64_t col = warp % tiles * WIDTH + static_cast<int64_t>(lane) * Pack::size;
    const int width = static_cast<int>(columns - col);
    const bool aligned = columns % Pack::size == 0 && aligned16(g) && aligned16(dweight);
    const int length = static_cast<int>(min(count - start, int64_t{CHUNK}));
    const int64_t row = lane < length ? order[start + lane] : 0;
    const int64_t id = lane < length ? ids[row] : -1;
    const int64_t before = id_at(ids, order, start - 1, count);
    const int64_t after = id_at(ids, order, start + CHUNK, count);
    Sums sums;
#pragma unroll 1
    for (int first = 0; first < length; first += ROWS) {
        Pack packs[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            const int64_t from = __shfl_sync(FULL, row, first + k) * columns;
            const int64_t here = __shfl_sync(FULL, id, first + k);
            if (here >= 0 && here != padding) packs[k] = load_part(g + from + col, width, aligned);
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            const int place = first + k;
            const int64_t here = __shfl_sync(FULL, id, place);
            const int64_t following = __shfl_sync(FULL, id, (place + 1) % CHUNK);
            const int64_t next = place + 1 < CHUNK ? following : after;
            if (here < 0 || here == padding) continue;
            sums.add(packs[k]);
            if (here == next && place + 1 < CHUNK) continue;
            if (here == next || here == before)
                sums.store(partial + (2 * chunk + (here != before)) * columns + col, width);
            else
                sums.store(dweight + here * columns + col, width, aligned);
            sums = Sums();
        }
    }
}

// Ids that cross chunks: a block takes the one that begins in its chunk and goes on in the next, if
// there is one, in one tile of columns; a warp adds every WARPS-th of its partial sums.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_join(const int64_t* __restrict__ ids, const int64_t* __restrict__ order,
                   const float* __restrict__ partial, T* __restrict__ dweight, int64_t count,
                   int columns, int64_t padding) {
    constexpr int WIDTH = WARP * Pack::size;
    __shared__ float totals[WARPS][Pack::size][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned tiles = (static_cast<unsigned>(columns) + WIDTH - 1) / WIDTH;
    const int64_t chunk = blockIdx.x / tiles, end = (chunk + 1) * CHUNK;
    const int64_t id = id_at(ids, order, end - 1, count);
    if (id == padding || id != id_at(ids, order, end, count) ||
        id == id_at(ids, order, chunk * CHUNK - 1, count))
        return;
    // the last chunk that begins with the id: in steps that double, then in steps that halve
    int64_t last = chunk + 1, step = 1;
    for (; id_at(ids, order, (last + step) * CHUNK, count) == id; step *= 2) last += step;
    for (step /= 2; step > 0; step /= 2)
        if (id_at(ids, order, (last + step) * CHUNK, count) == id) last += step;
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
    sums.store(dweight + id * columns + col, width, aligned);
}
