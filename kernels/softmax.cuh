// What softmax and cross-entropy share: rows in Packs, and the maximum and the sum of exponentials
// of a row in one pass over it.
//
// A team of threads works on a row: a warp, several rows in a block (blockDim = (32, rows)), or a
// whole block (blockDim = (threads, 1)). Every thread handles the same elements of its row in every
// pass, so a row may be overwritten in place, or kept in shared memory, without a barrier.
#pragma once
#include "common.cuh"
#include "ptx.cuh"

constexpr int MAX_THREADS = 512, MIN_BLOCKS = 2;  // of a block; blocks on a multiprocessor

// e to the power x. For the 16-bit types one multiplication and one instruction: where it matters,
// x is between -20 and 0 and the relative error below 2^-19.
__device__ __forceinline__ float power(float x) {
#if GPUGRAD_DTYPE == 0
    return expf(x);
#else
    return exp2_approx(1.44269504088896341f * x);
#endif
}

// ---- the maximum of some numbers, and the sum of exp(x - maximum) ----

struct Running {
    float top, sum;  // -inf and 0 before the first number

    // NaN: fmaxf passes it over, but it enters the sum and stays there. +inf: inf - inf is NaN.
    template <int N>
    __device__ __forceinline__ void add(const float (&x)[N]) {
        float best = top;
#pragma unroll
        for (int k = 0; k < N; k++) best = fmaxf(best, x[k]);
        if (best != top) {
            sum *= power(top - best);
            top = best;
        }
        const float anchor = top == -INF ? 0.0f : top;
#pragma unroll
        for (int k = 0; k < N; k++) sum += power(x[k] - anchor);
    }
    // The factor that makes the sum relative to `best`; -inf - -inf would be NaN.
    __device__ __forceinline__ float rescale(float best) const {
        return top == best ? 1.0f : power(top - best);
    }
    // Relative to what is subtracted and divided by: 0 and 1 where all was -inf.
    __device__ __forceinline__ Running usable() const {
        return {top == -INF ? 0.0f : top, sum == 0.0f ? 1.0f : sum};
    }
};

__device__ __forceinline__ Running warp_total(Running mine) {
    const float best = warp_max(mine.top);
    return {best, warp_sum(mine.sum * mine.rescale(best))};
}

// ---- teams ----

__device__ __forceinline__ int64_t team_row() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

// The total over a team, for every thread of it; a barrier of the team. Each use in a kernel has
// its own scratch.
__device__ __forceinline__ Running team_total(Running mine, float (*scratch)[WARP]) {
    mine = warp_total(mine);
    if (blockDim.x > WARP) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        if (lane == 0) {
            scratch[0][warp] = mine.top;
            scratch[1][warp] = mine.sum;
        }
        __syncthreads();
        const bool filled = lane < blockDim.x / WARP;
        mine = warp_total({filled ? scratch[0][lane] : -INF, filled ? scratch[1][lane] : 0.0f});
    } else {
        __syncwarp();
    }
    return mine.usable();
}

__device__ __forceinline__ float team_sum(float x, float* scratch) {
    return blockDim.x == WARP ? warp_sum(x) : block_sum(x, scratch, blockDim.x);
}

// ---- rows ----

// How a row is read: Packs from the first address that suits one, the other elements one by one.
struct Row {
    int head, packs, loose;
    __device__ __forceinline__ int loose_column(int j) const {
        return j < head ? j : j + packs * Pack::size;
    }
    __device__ __forceinline__ int column(int i) const { return head + i * Pack::size; }
};

// If the two rows do not lie alike, they have no Packs.
__device__ __forceinline__ Row split(int columns, const T* a, const T* b) {
    const int past = static_cast<int>(reinterpret_cast<uint64_t>(a) % 16);
    if (past != static_cast<int>(reinterpret_cast<uint64_t>(b) % 16)) return {0, 0, columns};
    const int head = min(columns, (16 - past) % 16 / static_cast<int>(sizeof(T)));
    const int packs = (columns - head) / Pack::size;
    return {head, packs, columns - packs * Pack::size};
}

// The Packs of a row: in shared memory if they were kept there, else in global memory.
struct Packs {
    const T* at;
    Pack* kept;
    __device__ __forceinline__ Pack load(const Row& row, int i) const {
        return kept ? kept[i] : load_pack(at + row.column(i));
    }
};

// use(column) for this thread's loose elements.
template <class Use>
__device__ __forceinline__ void each_loose(const Row& row, Use use) {
    for (int j = threadIdx.x; j < row.loose; j += blockDim.x) use(row.loose_column(j));
}

// use(i, pack) for this thread's Packs, AHEAD loads under way.
template <int AHEAD, class Use>
__device__ __forceinline__ void each_pack(const Row& row, const Packs& from, Use use) {
    const int team = blockDim.x;
    for (int i = threadIdx.x; i < row.packs; i += AHEAD * team) {
        Pack packs[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * team < row.packs) packs[k] = from.load(row, i + k * team);
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * team < row.packs) use(i + k * team, packs[k]);
    }
}

// The same with two rows that lie alike: use(i, pack of a, pack of b).
template <int AHEAD, class Use>
__device__ __forceinline__ void each_pair(const Row& row, const Packs& a, const Packs& b, Use use) {
    const int team = blockDim.x;
    for (int i = threadIdx.x; i < row.packs; i += AHEAD * team) {
        Pack of_a[AHEAD], of_b[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (i + k * team < row.packs) {
                of_a[k] = a.load(row, i + k * team);
                of_b[k] = b.load(row, i + k * team);
            }
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * team < row.packs) use(i + k * team, of_a[k], of_b[k]);
    }
}

// By words of two elements: as 16-bit values they would take a register each.
__device__ __forceinline__ void widen(float (&to)[Pack::size], const Pack& pack) {
#if GPUGRAD_DTYPE == 1
    const unsigned* words = reinterpret_cast<const unsigned*>(&pack);
#pragma unroll
    for (int k = 0; k < Pack::size; k += 2) {
        to[k] = __uint_as_float(words[k / 2] << 16);
        to[k + 1] = __uint_as_float(words[k / 2] & 0xffff0000u);
    }
#else
#pragma unroll
    for (int k = 0; k < Pack::size; k++) to[k] = to_float(pack.values[k]);
#endif
}

#if GPUGRAD_DTYPE == 1
using Pair = __nv_bfloat162;
__device__ __forceinline__ Pair pair_of(float a, float b) { return __floats2bfloat162_rn(a, b); }
#elif GPUGRAD_DTYPE == 2
using Pair = __half2;
__device__ __forceinline__ Pair pair_of(float a, float b) { return __floats2half2_rn(a, b); }
#endif

__device__ __forceinline__ Pack narrow(const float (&from)[Pack::size]) {
    Pack pack;
#if GPUGRAD_DTYPE == 0
#pragma unroll
    for (int k = 0; k < Pack::size; k++) pack.values[k] = from[k];
#else
    Pair* pairs = reinterpret_cast<Pair*>(&pack);
#pragma unroll
    for (int k = 0; k < Pack::size; k += 2) pairs[k / 2] = pair_of(from[k], from[k + 1]);
#endif
    return pack;
}

// Read a row, keep its Packs if there is room, and return this thread's part of the total.
__device__ __forceinline__ Running read_row(const T* x, const Row& row, Pack* keep) {
    Running mine = {-INF, 0.0f};
    each_loose(row, [&](int col) { mine.add({to_float(x[col])}); });
    each_pack<4>(row, {x, nullptr}, [&](int i, const Pack& pack) {
        if (keep) keep[i] = pack;
        float values[Pack::size];
        widen(values, pack);
        mine.add(values);
    });
    return mine;
}
