// What follows a matrix product, or comes before it, where the product cannot do it itself.
//
// Matrices (M, N) of T or, `wide`, of float32, whose rows begin `stride` elements apart; bias (N).
// gemm_bias:  out = bias, or out + bias with `add`; the product is then added to out, which is
//             rounded once. A null bias counts as 0. Of two pointers of a name one is null.
// gemm_gelu:  out = gelu(aux).
// gemm_dgelu: out = out gelu'(aux).
// gelu is the approximation by tanh. A block takes a tile of 32 packs of 16 bytes of columns in
// WARPS * ROWS rows, a warp a row; a thread keeps the bias of its columns. Arithmetic in float32.
// Bytes: gemm_bias M N sizeof(out), twice that with `add`; gemm_gelu 2 M N sizeof(T); gemm_dgelu
// 3 M N sizeof(T).  FLOPs: at most M N, 25 M N, 40 M N.
#define GELU_TANH 1
#include "gelu.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int ROWS = 4;  // of a thread, all under way at once

// Where a thread works: `count` columns from `col` on (at most a pack is used) of rows `row`,
// row + WARPS, ...; `rows` of them, none if it has no columns.
struct Place {
    int64_t row;
    int col, count, rows;
    __device__ __forceinline__ Place(int64_t all_rows, int columns) {
        constexpr int WIDTH = WARP * Pack::size;
        const unsigned tiles = (static_cast<unsigned>(columns) + WIDTH - 1) / WIDTH;
        const int64_t first = static_cast<int64_t>(blockIdx.x / tiles) * (WARPS * ROWS);
        row = first + threadIdx.x / WARP;
        col = static_cast<int>(blockIdx.x % tiles) * WIDTH + threadIdx.x % WARP * Pack::size;
        count = columns - col;
        const int64_t left = (all_rows - row + WARPS - 1) / WARPS;
        rows = count > 0 ? static_cast<int>(max(int64_t{0}, min(left, int64_t{ROWS}))) : 0;
    }
};

// Whether every row of a matrix of T begins at a multiple of 16 bytes.
__device__ __forceinline__ bool suits_packs(const T* x, int64_t stride) {
    return aligned16(x) && stride % Pack::size == 0;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_bias(const float* __restrict__ wide_bias, const T* __restrict__ bias,
              float* __restrict__ wide, T* __restrict__ out, int64_t rows, int columns,
              int64_t stride, int add) {
    const Place place(rows, columns);
    float shift[Pack::size];
#pragma unroll
    for (int e = 0; e < Pack::size; e++) {
        shift[e] = 0.0f;
        if (e >= place.count) continue;
        if (wide_bias) shift[e] = wide_bias[place.col + e];
        if (bias) shift[e] = to_float(bias[place.col + e]);
    }
    const bool aligned = suits_packs(out, stride);
    for (int k = 0; k < place.rows; k++) {
        const int64_t at = (place.row + k * WARPS) * stride + place.col;
        if (wide) {
#pragma unroll
            for (int e = 0; e < Pack::size; e++)
                if (e < place.count) wide[at + e] = (add ? wide[at + e] : 0.0f) + shift[e];
            continue;
        }
        Pack pack;
        if (add) pack = load_part(out + at, place.count, aligned);
#pragma unroll
        for (int e = 0; e < Pack::size; e++)
            pack.values[e] = from_float((add ? to_float(pack.values[e]) : 0.0f) + shift[e]);
        store_part(out + at, pack, place.count, aligned);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_gelu(const T* __restrict__ aux, T* __restrict__ out, int64_t rows, int columns,
              int64_t aux_stride, int64_t out_stride) {
    const Place place(rows, columns);
    const bool aligned = suits_packs(aux, aux_stride) && suits_packs(out, out_stride);
    Pack packs[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const int64_t at = (place.row + k * WARPS) * aux_stride + place.col;
        if (k < place.rows) packs[k] = load_part(aux + at, place.count, aligned);
    }
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        if (k >= place.rows) break;
#pragma unroll
        for (int e = 0; e < Pack::size; e++)
            packs[k].values[e] = from_float(gelu(to_float(packs[k].values[e])));
        const int64_t at = (place.row + k * WARPS) * out_stride + place.col;
        store_part(out + at, packs[k], place.count, aligned);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_dgelu(const T* __restrict__ aux, T* __restrict__ out, int64_t rows, int columns,
               int64_t aux_stride, int64_t out_stride) {
    const Place place(rows, columns);
    const bool aligned = suits_packs(aux, aux_stride) && suits_packs(out, out_stride);
    Pack packs[ROWS], inner[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        if (k >= place.rows) break;
        const int64_t row = place.row + k * WARPS;
        packs[k] = load_part(out + row * out_stride + place.col, place.count, aligned);
        inner[k] = load_part(aux + row * aux_stride + place.col, place.count, aligned);
    }
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        if (k >= place.rows) break;
#pragma unroll
        for (int e = 0; e < Pack::size; e++) {
            T& value = packs[k].values[e];
            value = from_float(to_float(value) * derivative(to_float(inner[k].values[e])));
        }
        const int64_t at = (place.row + k * WARPS) * out_stride + place.col;
        store_part(out + at, packs[k], place.count, aligned);
    }
}
