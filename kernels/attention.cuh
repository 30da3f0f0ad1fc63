// What the kernels of attention share: tiles of rows in shared memory, fragments of the tensor
// cores, which keys a query sees, dropout. Queries, keys and values are rows of `width` elements.
#pragma once
#include "common.cuh"
#include "philox.cuh"
#include "ptx.cuh"

#ifndef HEAD_DIM  // elements of a row in shared memory: `width`, rounded up
#define HEAD_DIM 64
#endif
#ifndef DROPOUT
#define DROPOUT 0
#endif

constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;

// Query t sees the keys 0 to visible(t) - 1. `offset` = keys stands for no causal mask.
__device__ __forceinline__ int visible(int query, int offset, int keys) {
    return max(0, min(keys, query + offset + 1));
}

// Whether an array can be read 16 bytes at a time; `lengths` are its strides and width, ORed.
__device__ __forceinline__ bool in_packs(const T* p, int64_t lengths) {
    return aligned16(p) && lengths % Pack::size == 0;
}

// The rows of one head, and whether they can be read and written 16 bytes at a time.
struct Rows {
    T* start;
    int64_t stride;
    bool aligned;
    __device__ __forceinline__ T* at(int64_t row) const { return start + row * stride; }
};
__device__ __forceinline__ Rows rows_of(const T* x, int64_t batch_stride, int64_t head_stride,
                                        int64_t stride, int head, int heads, int width) {
    const T* start = x + head / heads * batch_stride + head % heads * head_stride;
    return {const_cast<T*>(start), stride,
            in_packs(x, batch_stride | head_stride | stride | width)};
}

// Which tile of which head a block works on. Heads are taken in groups whose keys and values fit
// the second-level cache together; in a group the tiles with the most work come first, those of all
// its heads, so that what is left over at the end is short.
struct Work {
    int head, tile;  // tile 0 is the longest
};
__device__ __forceinline__ Work work_of(int64_t block, int tiles, int heads, int group) {
    const int64_t before = block / (static_cast<int64_t>(group) * tiles) * group;
    const int here = static_cast<int>(min(static_cast<int64_t>(group), heads - before));
    const int64_t rest = block - before * tiles;
    return {static_cast<int>(before + rest % here), static_cast<int>(rest / here)};
}

// ---- dropout: row r of the flat (batch, head, query) draws whole blocks of four words ----

struct Dropout {
    uint64_t seed, counter;
    const uint64_t* state;  // read anew by every draw: kept in registers, it would make them spill
    unsigned threshold;  // a weight is kept where its word is at least this
    int keys;
    // The words of keys 4 * group to 4 * group + 3.
    __device__ __forceinline__ void draw(int64_t row, int group, unsigned (&words)[4]) const {
        const int64_t blocks = (static_cast<int64_t>(keys) + 3) / 4;
        uint64_t key = seed, first = counter;
        locate(state, key, first);
        philox(key, first + static_cast<uint64_t>(row * blocks + group), words);
    }
};

#if GPUGRAD_DTYPE != 0
// ---- tiles in shared memory: rows of DIM elements in chunks of 16 bytes ----
// A warp reads the same chunk of eight rows at once. They lie in different banks because the place
// of a chunk is XORed with its row, or where the chunks are no multiple of eight, because a row is
// an odd number of chunks long.
template <int DIM>
struct Tile {
    static_assert(DIM % 16 == 0, "an mma takes 16 elements");
    static constexpr int chunks = DIM / 8;
    static constexpr bool swizzled = chunks % 8 == 0;
    static constexpr int stride = 8 * (swizzled ? chunks : chunks | 1);  // elements
    __device__ __forceinline__ static T* at(T* tile, int row, int chunk) {
        return tile + row * stride + 8 * (swizzled ? chunk ^ (row & 7) : chunk);
    }
};

// Begin to copy `rows` rows of `width` elements into a tile of ROWS by DIM and fill the rest with
// zeros. Aligned: 16 bytes at a time, asynchronously; else element by element.
template <int ROWS, int DIM, int THREADS>
__device__ __forceinline__ void load_tile(T* tile, const T* from, int64_t stride, int rows,
                                          int width, bool aligned) {
    constexpr int chunks = Tile<DIM>::chunks;
    if (aligned) {
#pragma unroll
        for (int i = threadIdx.x; i < ROWS * chunks; i += THREADS) {
            const int row = i / chunks, chunk = i % chunks;
            const bool valid = row < rows && 8 * chunk < width;
            cp_async_16(Tile<DIM>::at(tile, row, chunk),
                        from + (valid ? row * stride + 8 * chunk : 0), valid);
        }
        return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * DIM; i += THREADS) {
        const int row = i / DIM, col = i % DIM;
        const bool valid = row < rows && col < width;
        Tile<DIM>::at(tile, row, col / 8)[col % 8] =
            valid ? from[row * stride + col] : from_float(0.0f);
    }
}

// ---- fragments: operands of mma.m16n8k16 from a tile (see ptx.cuh for who holds what) ----

// a: 16 rows from `row`, 16 columns from 16 * step.
template <int DIM>
__device__ __forceinline__ void load_rows(unsigned (&a)[4], T* tile, int row, int step) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, Tile<DIM>::at(tile, row + lane % 16, 2 * step + lane / 16));
}

// b of a product with the transposed tile: its rows `row` to row + 7 and row + 8 to row + 15 are
// the columns of b[0] and b[1], 16 * step the first of the elements summed over.
template <int DIM>
__device__ __forceinline__ void load_transposed(unsigned (&b)[2][2], T* tile, int row, int step) {
    const int lane = threadIdx.x % WARP;
    unsigned found[4];
    row += lane / 16 * 8 + lane % 8;
    ldmatrix_x4(found, Tile<DIM>::at(tile, row, 2 * step + lane / 8 % 2));
    b[0][0] = found[0], b[0][1] = found[1], b[1][0] = found[2], b[1][1] = found[3];
}

// b of a product with the tile itself: 16 rows from `row` are summed over, the columns from
// 16 * step are those of b[0], and eight further on of b[1].
template <int DIM>
__device__ __forceinline__ void load_columns(unsigned (&b)[2][2], T* tile, int row, int step) {
    const int lane = threadIdx.x % WARP;
    unsigned found[4];
    ldmatrix_x4_trans(found, Tile<DIM>::at(tile, row + lane % 16, 2 * step + lane / 16));
    b[0][0] = found[0], b[0][1] = found[1], b[1][0] = found[2], b[1][1] = found[3];
}

__device__ __forceinline__ void mma(float (&sums)[4], const unsigned (&a)[4],
                                    const unsigned (&b)[2]) {
#if GPUGRAD_DTYPE == 1
    mma_bf16(sums, a, b);
#else
    mma_f16(sums, a, b);
#endif
}

__device__ __forceinline__ unsigned pack(float low, float high) {
#if GPUGRAD_DTYPE == 1
    return pack_bf16(low, high);
#else
    return pack_f16(low, high);
#endif
}

// Two neighbouring sums of 16 by 8, rounded, as the a of the next product: sums of columns 16 k to
// 16 k + 15 of which `low` holds the first eight.
__device__ __forceinline__ void as_rows(unsigned (&a)[4], const float (&low)[4],
                                        const float (&high)[4]) {
    a[0] = pack(low[0], low[1]), a[1] = pack(low[2], low[3]);
    a[2] = pack(high[0], high[1]), a[3] = pack(high[2], high[3]);
}

// The words of two neighbouring keys for both rows of a lane's sums of 16 by 8: keys col + 2 t and
// the next (t = lane % 4, col a multiple of 8), rows `row` and row + 8. A block of four words
// serves two lanes: each draws one row's and they exchange halves.
__device__ __forceinline__ void draw_pairs(unsigned (&words)[4], const Dropout& dropout,
                                           int64_t row, int col) {
    const int odd = threadIdx.x % 2;
    unsigned mine[4];
    dropout.draw(row + 8 * odd, col / 4 + threadIdx.x % 4 / 2, mine);
    const unsigned sent[2] = {odd ? mine[0] : mine[2], odd ? mine[1] : mine[3]};
    const unsigned got[2] = {__shfl_xor_sync(FULL, sent[0], 1), __shfl_xor_sync(FULL, sent[1], 1)};
    words[0] = odd ? got[0] : mine[0], words[1] = odd ? got[1] : mine[1];
    words[2] = odd ? mine[2] : got[0], words[3] = odd ? mine[3] : got[1];
}

// ---- a score as a weight, backward ----

// From here a rounded product with the scale would lose what tells large scores apart.
constexpr float FAR = 1024.0f;

// lse, which is the largest of the scores but for little, is then taken off first, rounded as they
// are.
__device__ __forceinline__ bool is_far(float lse) { return !(fabsf(lse) < FAR); }
__device__ __forceinline__ float weight(float x, float lse, float scale, bool any_far) {
    if (any_far) return exp2_approx((__fmul_rn(x, scale) - lse) * LOG2E);
    return exp2_approx(x * (scale * LOG2E) - lse * LOG2E);
}
#else
// ---- float32: rows of shared memory, `stride` floats apart ----

// sums[i][j] = the product of row i of a and row j of b, rows that are 16 apart. Forward and
// backward must have scores equal bit for bit, or the largest would not meet their lse. Sums of
// sums of 16 round less than one long sum.
template <int A, int B>
__device__ __forceinline__ void multiply_rows(float (&sums)[A][B], const float* a, const float* b,
                                              int stride) {
#pragma unroll
    for (int i = 0; i < A; i++)
        for (int j = 0; j < B; j++) sums[i][j] = 0.0f;
#pragma unroll 1
    for (int start = 0; start < HEAD_DIM; start += 16) {
        float part[A][B];
#pragma unroll
        for (int i = 0; i < A; i++)
            for (int j = 0; j < B; j++) part[i][j] = 0.0f;
#pragma unroll 1
        for (int col = start; col < start + 16; col += 4) {
            float4 x[A], y[B];
#pragma unroll
            for (int i = 0; i < A; i++)
                x[i] = *reinterpret_cast<const float4*>(a + 16 * i * stride + col);
#pragma unroll
            for (int j = 0; j < B; j++)
                y[j] = *reinterpret_cast<const float4*>(b + 16 * j * stride + col);
#pragma unroll
            for (int i = 0; i < A; i++)
                for (int j = 0; j < B; j++) {
                    part[i][j] = fmaf(x[i].x, y[j].x, part[i][j]);
                    part[i][j] = fmaf(x[i].y, y[j].y, part[i][j]);
                    part[i][j] = fmaf(x[i].z, y[j].z, part[i][j]);
                    part[i][j] = fmaf(x[i].w, y[j].w, part[i][j]);
                }
        }
#pragma unroll
        for (int i = 0; i < A; i++)
            for (int j = 0; j < B; j++) sums[i][j] += part[i][j];
    }
}
#endif
