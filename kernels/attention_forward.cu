// Attention forward: out = softmax(scale q k^T) v, without the matrix of weights (Dao et al.,
// FlashAttention, 2022 and FlashAttention-2, 2023).
//
// q, out (B, H, Q, D), k, v (B, H, K, D) of T with any strides of (batch, head, token); lse
// (B, H, Q) float32. Query t sees the keys up to t + offset; offset >= K is no causal mask. D is at
// most HEAD_DIM. lse = log(sum(exp(scale q k^T))) of the undropped scores, +inf for a query that
// sees no key; its out is 0. `inverse_keep` is 1 / (1 - p), `threshold` the smallest word kept.
// A block computes ROWS queries of one head: it walks over the keys they see in tiles, the next
// tile on its way while it works on one, and keeps of each row the maximum, the sum and the
// unnormalised result. Scores, sums and results are float32; with 16-bit T the weights are rounded
// to T for their product with v.
// Bytes: q and out once, k and v once per tile of queries (mostly from the second-level cache).
// FLOPs: 4 B H Q K D, half of it with a causal mask.
#include "attention.cuh"

// What one block computes: some queries of one head.
struct Block {
    const T *q, *k, *v;  // the first of these queries, key 0, value 0
    T* out;
    float* lse;
    int64_t q_token, k_token, v_token, out_token;
    int64_t flat;  // of the first query, in (batch, head, query)
    int first, rows, keys, width, offset;
    bool aligned;
    float scale, inverse_keep;
    Dropout dropout;
    // How many keys a query of the block sees.
    __device__ __forceinline__ int seen(int row) const {
        return visible(first + row, offset, keys);
    }
};

#if GPUGRAD_DTYPE == 0
// ---- float32: fused multiply-adds, 256 threads as 16 by 16 ----
// Thread (y, x) computes the scores of rows y + 16 i with keys x + 16 j: the 16 threads of a row
// are half a warp. Then it computes the columns 4 x + 64 c to 4 x + 64 c + 3 of the same rows.
#ifndef ROWS
#define ROWS 64
#endif
#ifndef KEYS
#define KEYS 64
#endif
constexpr int THREADS = 256, SIDE = 16;
// of a multiprocessor, for which registers must do
constexpr int BLOCKS = DROPOUT || HEAD_DIM > 128 ? 1 : 2;
constexpr int STRIDE = HEAD_DIM + 4;  // floats; rows are read 16 bytes at a time without conflicts
constexpr int WEIGHTS = KEYS + 4;     // floats of a row of weights
constexpr int PER_ROW = ROWS / SIDE, PER_KEY = KEYS / SIDE, PER_COL = (HEAD_DIM + 63) / 64;
static_assert(HEAD_DIM % 4 == 0 && ROWS % SIDE == 0 && KEYS % SIDE == 0);

// The row's elements in shared memory, zeros behind its end.
template <int COUNT>
__device__ __forceinline__ void load_floats(float* tile, const float* from, int64_t stride,
                                            int rows, int width, bool aligned) {
    if (aligned) {
        for (int i = threadIdx.x; i < COUNT * HEAD_DIM / 4; i += THREADS) {
            const int row = i / (HEAD_DIM / 4), col = i % (HEAD_DIM / 4) * 4;
            const bool valid = row < rows && col < width;
            cp_async_16(tile + row * STRIDE + col, from + (valid ? row * stride + col : 0), valid);
        }
        return;
    }
#pragma unroll 1  // else, for sm_90a, registers do not suffice
    for (int i = threadIdx.x; i < COUNT * HEAD_DIM; i += THREADS) {
        const int row = i / HEAD_DIM, col = i % HEAD_DIM;
        const bool valid = row < rows && col < width;
        cp_async_4(tile + row * STRIDE + col, from + (valid ? row * stride + col : 0), valid);
    }
}

__device__ __forceinline__ float row_sum(float x) {
    for (int offset = SIDE / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL, x, offset);
    return x;
}

__device__ __forceinline__ float row_max(float x) {
    for (int offset = SIDE / 2; offset > 0; offset /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL, x, offset));
    return x;
}

__device__ __forceinline__ void compute(const Block& block) {
    DYN_SMEM(memory);
    float* const q_tile = reinterpret_cast<float*>(memory);
    float* const k_tile = q_tile + ROWS * STRIDE;
    float* const v_tile = k_tile + KEYS * STRIDE;
    float* const weights = v_tile + KEYS * STRIDE;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int rows = block.rows, keys = block.keys, width = block.width;
    const int seen = block.seen(rows - 1);
    const float scale = block.scale;
    load_floats<ROWS>(q_tile, block.q, block.q_token, rows, width, block.aligned);

    float top[PER_ROW], total[PER_ROW], sums[PER_ROW][PER_COL][4];
#pragma unroll
    for (int i = 0; i < PER_ROW; i++) {
        top[i] = -INF, total[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < PER_COL; c++)
            for (int e = 0; e < 4; e++) sums[i][c][e] = 0.0f;
    }
    for (int start = 0; start < seen; start += KEYS) {
        load_floats<KEYS>(k_tile, block.k + start * block.k_token, block.k_token, keys - start,
                          width, block.aligned);
        cp_async_commit();
        load_floats<KEYS>(v_tile, block.v + start * block.v_token, block.v_token, keys - start,
                          width, block.aligned);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        float scores[PER_ROW][PER_KEY];
        multiply_rows(scores, q_tile + y * STRIDE, k_tile + x * STRIDE, STRIDE);
#pragma unroll
        for (int i = 0; i < PER_ROW; i++) {
            const int row = y + SIDE * i, limit = block.seen(row) - start;
            float highest = top[i];
#pragma unroll
            for (int j = 0; j < PER_KEY; j++) {
                scores[i][j] = x + SIDE * j < limit ? scores[i][j] * scale : -INF;
                highest = fmaxf(highest, scores[i][j]);
            }
            highest = row_max(highest);
            // -inf - -inf would be NaN where nothing was seen yet; a NaN among the scores is not
            // in `highest`, and reaches the result through its weight
            const float base = highest == -INF ? 0.0f : highest;
            const float shrink = expf(top[i] - base);
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < PER_KEY; j++) {
                float weight = expf(scores[i][j] - base);
                sum += weight;
#if DROPOUT
                unsigned words[4];
                const int key = start + x + SIDE * j;
                block.dropout.draw(block.flat + row, key / 4, words);
                const unsigned low = x % 2 ? words[1] : words[0];
                const unsigned high = x % 2 ? words[3] : words[2];
                if ((x % 4 / 2 ? high : low) < block.dropout.threshold) weight = 0.0f;
#endif
                weights[row * WEIGHTS + x + SIDE * j] = weight;
            }
            top[i] = highest;
            total[i] = total[i] * shrink + sum;
#pragma unroll
            for (int c = 0; c < PER_COL; c++)
                for (int e = 0; e < 4; e++) sums[i][c][e] *= shrink;
        }
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll 1
        for (int key = 0; key < KEYS; key += 4) {
            float a[PER_ROW][4];
#pragma unroll
            for (int i = 0; i < PER_ROW; i++) {
                const float4 found =
                    *reinterpret_cast<const float4*>(weights + (y + SIDE * i) * WEIGHTS + key);
                a[i][0] = found.x, a[i][1] = found.y, a[i][2] = found.z, a[i][3] = found.w;
            }
#pragma unroll
            for (int e = 0; e < 4; e++)
                for (int c = 0; c < PER_COL; c++) {
                    const int col = 64 * c + 4 * x;
                    if (HEAD_DIM % 64 != 0 && col >= HEAD_DIM) continue;
                    const float4 b =
                        *reinterpret_cast<const float4*>(v_tile + (key + e) * STRIDE + col);
#pragma unroll
                    for (int i = 0; i < PER_ROW; i++) {
                        sums[i][c][0] = fmaf(a[i][e], b.x, sums[i][c][0]);
                        sums[i][c][1] = fmaf(a[i][e], b.y, sums[i][c][1]);
                        sums[i][c][2] = fmaf(a[i][e], b.z, sums[i][c][2]);
                        sums[i][c][3] = fmaf(a[i][e], b.w, sums[i][c][3]);
                    }
                }
        }
        __syncthreads();
    }
    cp_async_wait<0>();

#pragma unroll
    for (int i = 0; i < PER_ROW; i++) {
        const int row = y + SIDE * i;
        const float sum = row_sum(total[i]);
        const float factor = sum == 0.0f ? 0.0f : block.inverse_keep / sum;
        if (row >= rows) continue;
        if (x == 0) block.lse[row] = sum == 0.0f ? INF : top[i] + logf(sum);
#pragma unroll
        for (int c = 0; c < PER_COL; c++)
            for (int e = 0; e < 4; e++) {
                const int col = 64 * c + 4 * x + e;
                if (col < width) block.out[row * block.out_token + col] = sums[i][c][e] * factor;
            }
    }
}

#else
// ---- bfloat16 and float16: tensor cores ----
// Each warp has BANDS times 16 rows of its own: the more, the fewer reads of k and v from shared
// memory per product, which bound the rate otherwise.
#ifndef WARPS
#define WARPS 4
#endif
#ifndef BANDS
#define BANDS 2
#endif
#ifndef KEYS
#define KEYS 64
#endif
constexpr int THREADS = WARP * WARPS, WARP_ROWS = 16 * BANDS, ROWS = WARP_ROWS * WARPS;
constexpr int BLOCKS = WARPS > 4 ? 1 : 2;  // of a multiprocessor, for which registers must do
constexpr int STEPS = HEAD_DIM / 16;  // of the sum over a row's elements
constexpr int PARTS = KEYS / 8;       // sums of 16 by 8 in a band's scores
constexpr int COLS = HEAD_DIM / 8;    // and in its result
// Weights are 2 to the power of what a score lies above `top`, a former maximum of its row. It is
// replaced, and sums and results are scaled anew, only where the maximum has grown by so much.
constexpr float GROWTH = 8.0f;

__device__ __forceinline__ void compute(const Block& block) {
    DYN_SMEM(memory);
    constexpr int size = KEYS * Tile<HEAD_DIM>::stride;
    T* const q_tile = reinterpret_cast<T*>(memory);
    T* const k_tiles = q_tile + ROWS * Tile<HEAD_DIM>::stride;  // two, then two of v
    T* const v_tiles = k_tiles + 2 * size;
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * WARP_ROWS;
    const int rows = block.rows, keys = block.keys, width = block.width;
    const int seen = block.seen(rows - 1);
    const float scale = block.scale;
    // what the warp's own rows see: all of them up to `all`, some of them up to `some`
    const int all = block.seen(warp_row);
    const int some = warp_row < rows ? block.seen(warp_row + WARP_ROWS - 1) : 0;
    load_tile<ROWS, HEAD_DIM, THREADS>(q_tile, block.q, block.q_token, rows, width, block.aligned);
    load_tile<KEYS, HEAD_DIM, THREADS>(k_tiles, block.k, block.k_token, keys, width,
                                       block.aligned);
    load_tile<KEYS, HEAD_DIM, THREADS>(v_tiles, block.v, block.v_token, keys, width,
                                       block.aligned);
    cp_async_commit();

    float top[BANDS][2], total[BANDS][2], sums[BANDS][COLS][4];
#pragma unroll
    for (int band = 0; band < BANDS; band++) {
        for (int half = 0; half < 2; half++) top[band][half] = -INF, total[band][half] = 0.0f;
        for (int col = 0; col < COLS; col++)
            for (int e = 0; e < 4; e++) sums[band][col][e] = 0.0f;
    }
    const float rate = scale * LOG2E;

    for (int start = 0, stage = 0; start < seen; start += KEYS, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there, and nobody reads the other one any more
        T* const k_tile = k_tiles + stage * size;
        T* const v_tile = v_tiles + stage * size;
        if (start + KEYS < seen) {
            const int next = start + KEYS;
            load_tile<KEYS, HEAD_DIM, THREADS>(k_tiles + (stage ^ 1) * size,
                                               block.k + next * block.k_token, block.k_token,
                                               keys - next, width, block.aligned);
            load_tile<KEYS, HEAD_DIM, THREADS>(v_tiles + (stage ^ 1) * size,
                                               block.v + next * block.v_token, block.v_token,
                                               keys - next, width, block.aligned);
        }
        cp_async_commit();
        if (start >= some) continue;

        float scores[BANDS][PARTS][4];
#pragma unroll
        for (int band = 0; band < BANDS; band++)
            for (int part = 0; part < PARTS; part++)
                for (int e = 0; e < 4; e++) scores[band][part][e] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            unsigned a[BANDS][4];
            for (int band = 0; band < BANDS; band++)
                load_rows<HEAD_DIM>(a[band], q_tile, warp_row + 16 * band, step);
#pragma unroll
            for (int part = 0; part < PARTS; part += 2) {
                unsigned b[2][2];
                load_transposed<HEAD_DIM>(b, k_tile, 8 * part, step);
                for (int band = 0; band < BANDS; band++)
                    for (int i = 0; i < 2; i++) mma(scores[band][part + i], a[band], b[i]);
            }
        }
        if (start + KEYS > all)
#pragma unroll
            for (int band = 0; band < BANDS; band++)
                for (int half = 0; half < 2; half++) {
                    const int row = warp_row + 16 * band + 8 * half + lane / 4;
                    const int limit = block.seen(row) - start;
                    for (int part = 0; part < PARTS; part++)
                        for (int e = 0; e < 2; e++)
                            if (8 * part + lane % 4 * 2 + e >= limit)
                                scores[band][part][2 * half + e] = -INF;
                }
#pragma unroll
        for (int band = 0; band < BANDS; band++)
            for (int half = 0; half < 2; half++) {
                float highest = top[band][half];
                for (int part = 0; part < PARTS; part++)
                    highest = fmaxf(highest, fmaxf(scores[band][part][2 * half],
                                                   scores[band][part][2 * half + 1]));
                highest = fmaxf(highest, __shfl_xor_sync(FULL, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(FULL, highest, 2));
                if ((highest - top[band][half]) * rate > GROWTH) {
                    const float shrink = exp2_approx((top[band][half] - highest) * rate);
                    top[band][half] = highest;
                    total[band][half] *= shrink;
                    for (int col = 0; col < COLS; col++)
                        for (int e = 0; e < 2; e++) sums[band][col][2 * half + e] *= shrink;
                }
                // -inf - -inf would be NaN where nothing was seen yet; a NaN among the scores is
                // not in `highest`, and reaches the result through its weight
                const float base = top[band][half] == -INF ? 0.0f : top[band][half];
                float shift = base * rate;
                if (!(fabsf(shift) < FAR)) {  // the two are subtracted before they are scaled
                    for (int part = 0; part < PARTS; part++)
                        for (int e = 0; e < 2; e++) scores[band][part][2 * half + e] -= base;
                    shift = 0.0f;
                }
                for (int part = 0; part < PARTS; part++)
                    for (int e = 0; e < 2; e++) {
                        float& score = scores[band][part][2 * half + e];
                        score = exp2_approx(fmaf(score, rate, -shift));
                        total[band][half] += score;
                    }
            }
#if DROPOUT
#pragma unroll
        for (int band = 0; band < BANDS; band++)
            for (int part = 0; part < PARTS; part++) {
                unsigned words[4];
                draw_pairs(words, block.dropout, block.flat + warp_row + 16 * band + lane / 4,
                           start + 8 * part);
                for (int e = 0; e < 4; e++)
                    if (words[e] < block.dropout.threshold) scores[band][part][e] = 0.0f;
            }
#endif
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            unsigned a[BANDS][4];
            for (int band = 0; band < BANDS; band++)
                as_rows(a[band], scores[band][2 * step], scores[band][2 * step + 1]);
#pragma unroll
            for (int col = 0; col < COLS; col += 2) {
                unsigned b[2][2];
                load_columns<HEAD_DIM>(b, v_tile, 16 * step, col / 2);
                for (int band = 0; band < BANDS; band++)
                    for (int i = 0; i < 2; i++) mma(sums[band][col + i], a[band], b[i]);
            }
        }
    }
    cp_async_wait<0>();
    // Where no key is seen nobody has waited yet for what other warps copy into this one's rows of
    // q, which now take the result.
    __syncthreads();

#pragma unroll
    for (int band = 0; band < BANDS; band++)
        for (int half = 0; half < 2; half++) {
            float sum = total[band][half];
            sum += __shfl_xor_sync(FULL, sum, 1);
            sum += __shfl_xor_sync(FULL, sum, 2);
            const float factor = sum == 0.0f ? 0.0f : block.inverse_keep / sum;
            const int row = warp_row + 16 * band + 8 * half + lane / 4;
            if (lane % 4 == 0 && row < rows)
                block.lse[row] = sum == 0.0f ? INF : top[band][half] * scale + logf(sum);
            for (int col = 0; col < COLS; col++)
                *reinterpret_cast<unsigned*>(Tile<HEAD_DIM>::at(q_tile, row, col) + lane % 4 * 2) =
                    pack(sums[band][col][2 * half] * factor,
                         sums[band][col][2 * half + 1] * factor);
        }
    __syncwarp();
    for (int i = lane; i < WARP_ROWS * COLS; i += WARP) {
        const int row = warp_row + i / COLS, col = i % COLS;
        if (row >= rows || 8 * col >= width) continue;
        const T* const from = Tile<HEAD_DIM>::at(q_tile, row, col);
        T* const to = block.out + row * block.out_token + 8 * col;
        if (block.aligned) {
            *reinterpret_cast<Pack*>(to) = *reinterpret_cast<const Pack*>(from);
        } else {
            for (int e = 0; e < 8 && 8 * col + e < width; e++) to[e] = from[e];
        }
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_forward(const T* q, const T* k, const T* v, T* out, float* lse, int64_t q_batch,
                      int64_t q_head, int64_t q_token, int64_t k_batch, int64_t k_head,
                      int64_t k_token, int64_t v_batch, int64_t v_head, int64_t v_token,
                      int64_t out_batch, int64_t out_head, int64_t out_token, int batches,
                      int heads, int queries, int keys, int width, int offset, int group,
                      float scale, float inverse_keep, uint64_t seed, uint64_t counter,
                      const uint64_t* state, unsigned threshold) {
    const int tiles = (queries + ROWS - 1) / ROWS;
    const Work work = work_of(blockIdx.x, tiles, batches * heads, group);
    const int batch = work.head / heads, head = work.head % heads;
    const int first = (tiles - 1 - work.tile) * ROWS;
    const int64_t flat = static_cast<int64_t>(work.head) * queries + first;
    compute({q + batch * q_batch + head * q_head + first * q_token,
             k + batch * k_batch + head * k_head,
             v + batch * v_batch + head * v_head,
             out + batch * out_batch + head * out_head + first * out_token,
             lse + flat,
             q_token,
             k_token,
             v_token,
             out_token,
             flat,
             first,
             min(ROWS, queries - first),
             keys,
             width,
             offset,
             in_packs(q, q_batch | q_head | q_token | width) &&
                 in_packs(k, k_batch | k_head | k_token) &&
                 in_packs(v, v_batch | v_head | v_token) &&
                 in_packs(out, out_batch | out_head | out_token),
             scale,
             inverse_keep,
             {seed, counter, state, threshold, keys}});
}
