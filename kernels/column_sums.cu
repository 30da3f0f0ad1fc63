// Sums over the rows of a matrix: the gradients of biases and of the weights of normalisations.
//
// x (N, C) of T or, in column_sums_total, float32; `wide` float32 or `narrow` of T: (S, C) for S =
// gridDim.y, of which one is written and the other null.
// A block adds up a stripe of rows of a tile of columns in float32: `team` lanes of a warp hold a
// row of the tile, other lanes and warps other rows. column_sums makes of many rows at most some
// hundred stripes, a row of `wide` each; column_sums_total adds those. The order of the additions
// depends on the shape alone.
// Bytes: N C sizeof(T).  FLOPs: N C.
#include "rows.cuh"

constexpr int THREADS = 256;

template <int VALUES, int N, typename E>
__device__ __forceinline__ void sum_stripe(const E* x, float* wide, T* narrow, int64_t rows,
                                           int columns, int team) {
    __shared__ float total[VALUES * WARP];
    float sums[VALUES] = {};
    const auto add = [&](int64_t row, int col, int i) {
        const Neighbours<E, N> some = load<N>(x + row * columns + col);
#pragma unroll
        for (int j = 0; j < N; j++) sums[i + j] += static_cast<float>(some.values[j]);
    };
    const Tile tile = for_stripe<VALUES, N, 4>(rows, columns, team, add);
    const int64_t at = static_cast<int64_t>(blockIdx.y) * columns + tile.first;
    write_sums<VALUES, N>(sums, team, tile.width, total, [&](int col, float sum) {
        if (wide) wide[at + col] = sum;
        if (narrow) narrow[at + col] = from_float(sum);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    column_sums(const T* x, float* wide, T* narrow, int64_t rows, int columns, int team) {
    if (rows_aligned(columns, x)) {
        sum_stripe<Pack::size, Pack::size>(x, wide, narrow, rows, columns, team);
    } else {
        sum_stripe<Pack::size, 1>(x, wide, narrow, rows, columns, team);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    column_sums_total(const float* x, float* wide, T* narrow, int64_t rows, int columns,
                      int team) {
    sum_stripe<1, 1>(x, wide, narrow, rows, columns, team);
}
