// Rows of a matrix, held by teams of threads: what normalisations and sums over rows share.
//
// A team is `team` lanes of a warp, a power of two, or a whole block. Its threads take the columns
// in turn, N neighbours at a time: Pack::size where all rows begin at multiples of 16 bytes, or 1.
#pragma once

#include "common.cuh"

// N neighbours in memory: one load or store instruction.
template <typename E, int N>
struct alignas(N * sizeof(E)) Neighbours {
    E values[N];
};

template <int N, typename E>
__device__ __forceinline__ Neighbours<E, N> load(const E* p) {
    return *reinterpret_cast<const Neighbours<E, N>*>(p);
}

template <int N, typename E>
__device__ __forceinline__ void store(E* p, const Neighbours<E, N>& neighbours) {
    *reinterpret_cast<Neighbours<E, N>*>(p) = neighbours;
}

// Whether all rows of arrays of T (null pointers aside) begin at multiples of 16 bytes.
template <typename... P>
__device__ __forceinline__ bool rows_aligned(int columns, const P*... arrays) {
    return columns % Pack::size == 0 && (reinterpret_cast<uint64_t>(arrays) | ...) % 16 == 0;
}

// Sums over a team of K numbers each; every thread gets them. `scratch` must not be in use: the one
// barrier does not keep a fast warp from writing to it again while a slow one still reads.
template <int K>
__device__ __forceinline__ void team_sum(float (&x)[K], int team, float (&scratch)[K][WARP]) {
    for (int offset = min(team, WARP) / 2; offset > 0; offset /= 2) {
#pragma unroll
        for (int k = 0; k < K; k++) x[k] += __shfl_xor_sync(FULL, x[k], offset);
    }
    if (team <= WARP) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) {
        for (int k = 0; k < K; k++) scratch[k][warp] = x[k];
    }
    __syncthreads();
    for (int k = 0; k < K; k++) x[k] = warp_sum(lane < blockDim.x / WARP ? scratch[k][lane] : 0.0f);
}

// Calls add(row, col, i) for the columns that a thread takes, N from `col` on, with a place for
// their sums at sums[i]. A block has a tile of `team` * VALUES columns (by blockIdx.x) of a stripe
// of rows (by blockIdx.y); every team of the block takes other rows, UNROLL of them at a time.
struct Tile {
    int first;  // column
    int width;
};

template <int VALUES, int N, int UNROLL, typename Add>
__device__ __forceinline__ Tile for_stripe(int64_t rows, int columns, int team, const Add& add) {
    const int64_t each = (rows + gridDim.y - 1) / gridDim.y;
    const int64_t begin = blockIdx.y * each, end = min(begin + each, rows);
    const int first = blockIdx.x * team * VALUES, width = min(columns - first, team * VALUES);
    const int lane = threadIdx.x % team, teams = blockDim.x / team;
#pragma unroll UNROLL
    for (int64_t row = begin + threadIdx.x / team; row < end; row += teams) {
#pragma unroll
        for (int i = 0; i < VALUES; i += N) {
            const int col = i * team + lane * N;
            if (col < width) add(row, first + col, i);
        }
    }
    return {first, width};
}

// Adds up the sums of threads that had the same columns of different rows, and writes them:
// write(col, sum). If a team is at most a warp, `total` has room for team * VALUES; it may be used
// again at once. A thread has columns as above; the order of the additions depends on sizes alone.
template <int VALUES, int N, typename Write>
__device__ __forceinline__ void write_sums(float (&sums)[VALUES], int team, int width, float* total,
                                           const Write& write) {
    const int lane = threadIdx.x % team;
    if (team > WARP) {
#pragma unroll
        for (int i = 0; i < VALUES; i++) {
            const int col = (i / N * team + lane) * N + i % N;
            if (col < width) write(col, sums[i]);
        }
        return;
    }
    for (int offset = WARP / 2; offset >= team; offset /= 2) {
#pragma unroll
        for (int i = 0; i < VALUES; i++) sums[i] += __shfl_xor_sync(FULL, sums[i], offset);
    }
    for (int warp = 0; warp < blockDim.x / WARP; warp++) {
        if (warp == threadIdx.x / WARP && threadIdx.x % WARP < team) {
#pragma unroll
            for (int i = 0; i < VALUES; i++) {
                const int col = (i / N * team + lane) * N + i % N;
                if (col < width) total[col] = (warp ? total[col] : 0.0f) + sums[i];
            }
        }
        __syncthreads();
    }
    for (int col = threadIdx.x; col < width; col += blockDim.x) write(col, total[col]);
    __syncthreads();
}
