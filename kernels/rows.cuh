// Rows of a matrix, held by teams of threads: what normalisations and sums over rows share.
//
// A team is `team` lanes of a warp, a power of two, or a whole block. Its threads take the columns
// in turn, N neighbours at a time: Pack::size where all rows begin at multiples of 16 bytes, else 1.
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

// The column sums of a block whose threads added up different rows. `team` lanes hold a row each
// time, a thread the columns step * team * N + lane * N and the next N - 1 in sums[step * N]...
// `total` has room for all columns; complete for all threads on return. The order of the additions
// depends on nothing but the sizes.
template <int VALUES, int N>
__device__ __forceinline__ void add_up_rows(float (&sums)[VALUES], int team, int columns,
                                            float* total) {
    for (int offset = WARP / 2; offset >= team; offset /= 2) {
#pragma unroll
        for (int i = 0; i < VALUES; i++) sums[i] += __shfl_xor_sync(FULL, sums[i], offset);
    }
    const int lane = threadIdx.x % WARP;
    for (int warp = 0; warp < blockDim.x / WARP; warp++) {
        if (warp == threadIdx.x / WARP && lane < team) {
#pragma unroll
            for (int i = 0; i < VALUES; i++) {
                const int col = (i / N * team + lane) * N + i % N;
                if (col < columns) total[col] = (warp ? total[col] : 0.0f) + sums[i];
            }
        }
        __syncthreads();
    }
}
