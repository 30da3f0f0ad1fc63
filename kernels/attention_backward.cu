// Gradients of scaled dot-product attention (Dao et al.: FlashAttention-2, 2023).
//
// q, g (the gradient of out), out, dq (B, H, Q, D); k, v, dk, dv (B, H, K, D), all of T, each with
// its own strides (elements; those of a row are contiguous); lse (B, H, Q) float32. D is at most
// HEAD_DIM. With s = scale q k^T, p = exp(s - lse) and delta = rowsum(g out)
//
//     dv = p^T g    ds = p (g v^T - delta)    dk = scale ds^T q    dq = scale ds k
//
// Dropout does to p in dv, and to g v^T, what it did to the weights of the forward pass.
// attention_backward_rows: what belongs to a query, once: lse and delta, float32, padded to whole
//   tiles with queries that weigh nothing. Bytes: 2 B H Q D sizeof(T).
// attention_backward_keys: dk and dv (WANTED: 1, 2, or 3 for both) of OWN_KEYS keys of one head by
//   one block, which goes through the queries that see them, OTHERS at a time. FLOPs: 8 B H Q K D.
// attention_backward_queries: dq of OWN_QUERIES queries, through the keys they see. FLOPs:
//   6 B H Q K D; s and g v^T are computed again, so that dq is deterministic without a matrix or
//   partial sums in memory.
// Half the FLOPs with a causal mask. Bytes of these two: their own rows once, and once per block
// the other rows, from the second-level cache where the blocks of one head run together.
// bfloat16 and float16: tensor cores; a warp owns 16 or 32 rows and computes scores with them as
// rows, so that it has p and ds in registers as the left operand of the next product. float32:
// multiply-adds; p and ds pass through shared memory. All sums are float32; p and ds are rounded
// to T for the tensor cores only.
#include "attention.cuh"

#ifndef OWN_KEYS
#define OWN_KEYS 128
#endif
#ifndef OWN_QUERIES
#define OWN_QUERIES 128
#endif
#ifndef OTHERS
#define OTHERS 64
#endif
#ifndef WANTED
#define WANTED 3
#endif

// ---- what belongs to a query ----

constexpr int ROW_THREADS = 256;
constexpr int lanes_of(int packs) {  // of a warp, for one row
    int lanes = 1;
    while (lanes < packs && lanes < WARP) lanes *= 2;
    return lanes;
}

// stats (batch * heads, 2, padded): lse and delta.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    attention_backward_rows(const T* out, const T* g, const float* lse, float* stats,
                            int64_t out_batch, int64_t out_head, int64_t out_row, int64_t g_batch,
                            int64_t g_head, int64_t g_row, int all_heads, int heads, int queries,
                            int padded, int width) {
    constexpr int LANES = lanes_of(HEAD_DIM / Pack::size);
    const int lane = threadIdx.x % LANES;
    const int64_t rows = static_cast<int64_t>(all_heads) * padded;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (ROW_THREADS / LANES) +
                        threadIdx.x / LANES;
    const int head = static_cast<int>(min(row, rows - 1) / padded);
    const int query = static_cast<int>(row % padded);
    const bool real = row < rows && query < queries;
    float sum = 0.0f;
    if (real) {
        const Rows o = rows_of(out, out_batch, out_head, out_row, head, heads, width);
        const Rows d = rows_of(g, g_batch, g_head, g_row, head, heads, width);
        const T* x = o.at(query);
        const T* y = d.at(query);
        if (o.aligned && d.aligned) {
            for (int col = lane * Pack::size; col < width; col += LANES * Pack::size) {
                const Pack a = load_pack(x + col), b = load_pack(y + col);
#pragma unroll
                for (int i = 0; i < Pack::size; i++)
                    sum += to_float(a.values[i]) * to_float(b.values[i]);
            }
        } else {
            for (int col = lane; col < width; col += LANES)
                sum += to_float(x[col]) * to_float(y[col]);
        }
    }
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(FULL, sum, offset);
    if (lane == 0 && row < rows) {
        float* const at = stats + static_cast<int64_t>(head) * 2 * padded + query;
        // +inf weighs every key 0
        at[0] = real ? lse[static_cast<int64_t>(head) * queries + query] : INF;
        at[padded] = sum;
    }
}

// ---- how scores and sums lie in registers, and the products between them and tiles ----
//
// A unit (a warp with tensor cores, else the block) owns rows of the block's own tile. Scores<ROWS,
// COLS>: those of its rows with some of the other rows; the lane's element n is at (row(n), col(n)),
// and row(n) is one of its rows own(which(n)). Sums<ROWS>: a gradient of its rows.
//   Scores::multiply    own rows times the transposed other rows
//   Scores::keep        bit n: whether element n survives dropout
//   Sums::add           scores times the other rows
//   Sums::write         to memory, through the unit's own rows of a tile, or directly

#if GPUGRAD_DTYPE != 0
constexpr int THREADS = 128, WARPS = THREADS / WARP, STRIDE = Tile<HEAD_DIM>::stride;
#ifndef CHUNK  // of the other rows, those whose scores a warp has in registers at a time
#define CHUNK 16
#endif
constexpr int unit_rows(int own) { return own / WARPS; }

// Steps of 16 columns of the own rows that stay in registers: as many as leave no register to
// memory on sm_80 and sm_90a. Reading them again is half of the traffic of shared memory, which
// would be the bound. dk and dv take KEY_SUMS registers.
constexpr int STEPS = HEAD_DIM / 16;
constexpr int KEY_SUMS = unit_rows(OWN_KEYS) / 16 * HEAD_DIM;
constexpr bool FULL_OF_SUMS = KEY_SUMS > 128 || (KEY_SUMS == 128 && DROPOUT);
constexpr int HOLD_K = FULL_OF_SUMS ? 0 : KEY_SUMS == 128 ? STEPS / 2 : STEPS;
constexpr int HOLD_V = FULL_OF_SUMS || (KEY_SUMS == 128 && HEAD_DIM == 128) ? 0 : STEPS;
constexpr int HOLD_Q = HEAD_DIM > 128 ? 0 : STEPS, HOLD_G = HOLD_Q;
__device__ __forceinline__ int unit_first(int own) { return threadIdx.x / WARP * unit_rows(own); }

template <int COUNT>
__device__ __forceinline__ void load(T* tile, const Rows& from, int first, int rows, int width) {
    load_tile<COUNT, HEAD_DIM, THREADS>(tile, from.at(first), from.stride, rows - first, width,
                                        from.aligned);
}

// The words of four weights of a lane whose rows are keys: keys `key` + lane / 4 and eight further
// on, queries `row` + 2 (lane % 4) and the next, in the order of the sums of 16 by 8. A block of
// four words serves four keys, which four lanes have: each draws for one of the four weights, and
// they exchange words as in the transposition of a 4 by 4 matrix.
__device__ __forceinline__ void draw_transposed(unsigned (&words)[4], const Dropout& dropout,
                                                int64_t row, int key) {
    const int lane = threadIdx.x % WARP, mine = lane / 4 % 4;
    dropout.draw(row + 2 * (lane % 4) + mine % 2, key / 4 + 2 * (mine / 2) + lane / 16, words);
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool high = mine & bit;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            const unsigned got = __shfl_xor_sync(FULL, high ? words[i] : words[i + bit], 4 * bit);
            words[i] = high ? got : words[i];
            words[i + bit] = high ? words[i + bit] : got;
        }
    }
}

// Own rows as the left operand of products. The first HELD steps of 16 columns stay in registers
// from `hold` on; the others are read from shared memory each time.
template <int ROWS, int HELD>
struct Operand {
    static constexpr int strips = ROWS / 16;
    T* tile;
    int row;
    unsigned held[HELD ? HELD : 1][strips][4];

    __device__ __forceinline__ void hold() {
#pragma unroll
        for (int step = 0; step < HELD; step++)
#pragma unroll
            for (int s = 0; s < strips; s++)
                load_rows<HEAD_DIM>(held[step][s], tile, row + 16 * s, step);
    }
    __device__ __forceinline__ void get(unsigned (&a)[strips][4], int step) const {
#pragma unroll
        for (int s = 0; s < strips; s++) {
            if (step >= HELD)
                load_rows<HEAD_DIM>(a[s], tile, row + 16 * s, step);
            else
#pragma unroll
                for (int i = 0; i < 4; i++) a[s][i] = held[step][s][i];
        }
    }
};

template <int ROWS, int COLS>
struct Scores {
    static constexpr int strips = ROWS / 16, parts = COLS / 8, size = strips * parts * 4;
    static constexpr int owned = 2 * strips;
    float values[strips][parts][4];

    __device__ __forceinline__ float& operator[](int n) {
        return values[n / (4 * parts)][n / 4 % parts][n % 4];
    }
    __device__ __forceinline__ static int which(int n) { return n / (4 * parts) * 2 + n / 2 % 2; }
    __device__ __forceinline__ static int own(int i) { return 8 * i + threadIdx.x % WARP / 4; }
    __device__ __forceinline__ static int row(int n) { return own(which(n)); }
    __device__ __forceinline__ static int col(int n) {
        return n / 4 % parts * 8 + n % 2 + 2 * (threadIdx.x % 4);
    }

    template <int HELD>
    __device__ __forceinline__ void multiply(const Operand<ROWS, HELD>& mine, T* other,
                                             int other_row) {
#pragma unroll
        for (int n = 0; n < size; n++) (*this)[n] = 0.0f;
#pragma unroll
        for (int step = 0; step < HEAD_DIM / 16; step++) {
            unsigned a[strips][4];
            mine.get(a, step);
#pragma unroll
            for (int j = 0; j < COLS / 16; j++) {
                unsigned b[2][2];
                load_transposed<HEAD_DIM>(b, other, other_row + 16 * j, step);
#pragma unroll
                for (int s = 0; s < strips; s++) {
                    mma(values[s][2 * j], a[s], b[0]);
                    mma(values[s][2 * j + 1], a[s], b[1]);
                }
            }
        }
    }

    // `flat` is the flat number of query 0 of the head; `own` and `other` the first rows.
    template <bool OWN_ARE_KEYS>
    __device__ __forceinline__ static unsigned keep(const Dropout& dropout, int64_t flat, int own,
                                                    int other) {
        unsigned kept = 0;
#pragma unroll
        for (int s = 0; s < strips; s++)
#pragma unroll
            for (int j = 0; j < parts; j++) {
                unsigned words[4];
                if (OWN_ARE_KEYS)
                    draw_transposed(words, dropout, flat + other + 8 * j, own + 16 * s);
                else
                    draw_pairs(words, dropout, flat + own + 16 * s + threadIdx.x % WARP / 4,
                               other + 8 * j);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    kept |= static_cast<unsigned>(words[i] >= dropout.threshold)
                            << ((s * parts + j) * 4 + i);
            }
        return kept;
    }
};

template <int ROWS>
struct Sums {
    static constexpr int strips = ROWS / 16, parts = HEAD_DIM / 8;
    float values[strips][parts][4];

    template <int COLS>
    __device__ __forceinline__ void add(const Scores<ROWS, COLS>& weights, T* other, int other_row,
                                        float*) {
#pragma unroll
        for (int j = 0; j < COLS / 16; j++) {
            unsigned a[strips][4];
#pragma unroll
            for (int s = 0; s < strips; s++)
                as_rows(a[s], weights.values[s][2 * j], weights.values[s][2 * j + 1]);
#pragma unroll
            for (int step = 0; step < HEAD_DIM / 16; step++) {
                unsigned b[2][2];
                load_columns<HEAD_DIM>(b, other, other_row + 16 * j, step);
#pragma unroll
                for (int s = 0; s < strips; s++) {
                    mma(values[s][2 * step], a[s], b[0]);
                    mma(values[s][2 * step + 1], a[s], b[1]);
                }
            }
        }
    }

    __device__ __forceinline__ void write(float factor, T* tile, int own_row, const Rows& to,
                                          int first, int count, int width) const {
        const int lane = threadIdx.x % WARP;
        __syncwarp();  // other lanes read the rows until here
#pragma unroll
        for (int s = 0; s < strips; s++)
#pragma unroll
            for (int j = 0; j < parts; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = own_row + 16 * s + 8 * half + lane / 4;
                    T* at = Tile<HEAD_DIM>::at(tile, row, j) + 2 * (lane % 4);
                    *reinterpret_cast<unsigned*>(at) = pack(values[s][j][2 * half] * factor,
                                                            values[s][j][2 * half + 1] * factor);
                }
        __syncwarp();
        for (int i = lane; i < ROWS * parts; i += WARP) {
            const int row = own_row + i / parts, col = i % parts * 8;
            if (first + row >= count || col >= width) continue;
            const T* from = Tile<HEAD_DIM>::at(tile, row, col / 8);
            T* at = to.at(first + row) + col;
            if (to.aligned)
                store_pack(at, load_pack(from));
            else
                for (int e = 0; e < min(8, width - col); e++) at[e] = from[e];
        }
    }
};

#else
constexpr int THREADS = 256, SIDE = 16;  // thread (y, x) = (i / 16, i % 16)
constexpr int CHUNK = OTHERS;
constexpr int STRIDE = HEAD_DIM + 4;  // rows are read 16 bytes at a time without conflicts
constexpr int SHEET = OTHERS + 4;     // floats of a row of weights in shared memory
constexpr int unit_rows(int own) { return own; }
constexpr int HOLD_K = 0, HOLD_V = 0, HOLD_Q = 0, HOLD_G = 0;
__device__ __forceinline__ int unit_first(int) { return 0; }

template <int COUNT>
__device__ __forceinline__ void load(T* tile, const Rows& from, int first, int rows, int width) {
    const int size = from.aligned ? 4 : 1;
    for (int i = threadIdx.x; i < COUNT * HEAD_DIM / size; i += THREADS) {
        const int row = i / (HEAD_DIM / size), col = i % (HEAD_DIM / size) * size;
        const bool valid = first + row < rows && col < width;
        const float* at = from.at(first + (valid ? row : 0)) + (valid ? col : 0);
        if (from.aligned)
            cp_async_16(tile + row * STRIDE + col, at, valid);
        else
            cp_async_4(tile + row * STRIDE + col, at, valid);
    }
}

__device__ __forceinline__ float4 four(const float* p) {
    return *reinterpret_cast<const float4*>(p);
}

template <int ROWS, int>
struct Operand {
    T* tile;
    int row;
    __device__ __forceinline__ void hold() {}
};

template <int ROWS, int COLS>
struct Scores {
    static constexpr int owned = ROWS / SIDE, across = COLS / SIDE, size = owned * across;
    float values[owned][across];

    __device__ __forceinline__ float& operator[](int n) { return values[n / across][n % across]; }
    __device__ __forceinline__ static int which(int n) { return n / across; }
    __device__ __forceinline__ static int own(int i) { return threadIdx.x / SIDE + SIDE * i; }
    __device__ __forceinline__ static int row(int n) { return own(which(n)); }
    __device__ __forceinline__ static int col(int n) {
        return threadIdx.x % SIDE + SIDE * (n % across);
    }

    template <int HELD>
    __device__ __forceinline__ void multiply(const Operand<ROWS, HELD>& mine, T* other, int) {
        multiply_rows(values, mine.tile + own(0) * STRIDE, other + col(0) * STRIDE, STRIDE);
    }

    template <bool OWN_ARE_KEYS>
    __device__ __forceinline__ static unsigned keep(const Dropout& dropout, int64_t flat, int own,
                                                    int other) {
        unsigned kept = 0;
        for (int n = 0; n < size; n++) {
            const int key = OWN_ARE_KEYS ? own + row(n) : other + col(n);
            unsigned words[4];
            dropout.draw(flat + (OWN_ARE_KEYS ? other + col(n) : own + row(n)), key / 4, words);
            const unsigned low = key & 1 ? words[1] : words[0];
            const unsigned high = key & 1 ? words[3] : words[2];
            kept |= static_cast<unsigned>((key & 2 ? high : low) >= dropout.threshold) << n;
        }
        return kept;
    }
};

template <int ROWS>
struct Sums {
    static constexpr int owned = ROWS / SIDE, across = (HEAD_DIM + 63) / 64;
    float4 values[owned][across];  // columns 64 c + 4 x and the next three

    // Every thread of the block needs the weights of its rows: they go through the sheet.
    template <int COLS>
    __device__ __forceinline__ void add(const Scores<ROWS, COLS>& weights, T* other, int,
                                        float* sheet) {
        using Part = Scores<ROWS, COLS>;
#pragma unroll
        for (int i = 0; i < owned; i++)
#pragma unroll
            for (int j = 0; j < Part::across; j++)
                sheet[Part::own(i) * SHEET + Part::col(j)] = weights.values[i][j];
        __syncthreads();
        float4 sums[owned][across] = {};  // of this tile: one long sum would round more
#pragma unroll 2
        for (int step = 0; step < COLS; step += 4) {
            float4 a[owned];
#pragma unroll
            for (int i = 0; i < owned; i++) a[i] = four(sheet + Part::own(i) * SHEET + step);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int c = 0; c < across; c++) {
                    const int col = 64 * c + 4 * (threadIdx.x % SIDE);
                    if (HEAD_DIM % 64 != 0 && col >= HEAD_DIM) continue;
                    const float4 b = four(other + (step + e) * STRIDE + col);
#pragma unroll
                    for (int i = 0; i < owned; i++) {
                        const float w = e == 0   ? a[i].x
                                        : e == 1 ? a[i].y
                                        : e == 2 ? a[i].z
                                                 : a[i].w;
                        float4& sum = sums[i][c];
                        sum.x = fmaf(w, b.x, sum.x);
                        sum.y = fmaf(w, b.y, sum.y);
                        sum.z = fmaf(w, b.z, sum.z);
                        sum.w = fmaf(w, b.w, sum.w);
                    }
                }
        }
#pragma unroll
        for (int i = 0; i < owned; i++)
#pragma unroll
            for (int c = 0; c < across; c++) {
                values[i][c].x += sums[i][c].x;
                values[i][c].y += sums[i][c].y;
                values[i][c].z += sums[i][c].z;
                values[i][c].w += sums[i][c].w;
            }
        __syncthreads();  // before anybody writes the next weights
    }

    __device__ __forceinline__ void write(float factor, T*, int, const Rows& to, int first,
                                          int count, int width) const {
#pragma unroll
        for (int i = 0; i < owned; i++)
#pragma unroll
            for (int c = 0; c < across; c++) {
                const int row = first + threadIdx.x / SIDE + SIDE * i;
                const int col = 64 * c + 4 * (threadIdx.x % SIDE);
                if (row >= count || col >= width) continue;
                const float4 sum = values[i][c];
                const Pack pack = {sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
                T* at = to.at(row) + col;
                if (to.aligned)
                    store_pack(at, pack);
                else
                    for (int e = 0; e < 4; e++)
                        if (col + e < width) at[e] = pack.values[e];
            }
    }
};

__device__ __forceinline__ bool is_far(float) { return false; }
__device__ __forceinline__ float weight(float x, float lse, float scale, bool) {
    return expf(__fmul_rn(x, scale) - lse);  // the rounded score, as in the forward pass
}
#endif

// ---- the kernels ----

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_keys(
    const T* q, const T* k, const T* v, const T* g, const float* stats, T* dk, T* dv,
    int64_t q_batch, int64_t q_head, int64_t q_row, int64_t k_batch, int64_t k_head, int64_t k_row,
    int64_t v_batch, int64_t v_head, int64_t v_row, int64_t g_batch, int64_t g_head, int64_t g_row,
    int64_t dk_batch, int64_t dk_head, int64_t dk_row, int64_t dv_batch, int64_t dv_head,
    int64_t dv_row, int all_heads, int heads, int queries, int keys, int padded, int width,
    int offset, int group, float scale, float inverse_keep, uint64_t seed, uint64_t counter,
    const uint64_t* state, unsigned threshold) {
    constexpr int UNIT = unit_rows(OWN_KEYS);
    using Part = Scores<UNIT, CHUNK>;
    DYN_SMEM(memory);
    T* own_k = reinterpret_cast<T*>(memory);
    T* own_v = own_k + OWN_KEYS * STRIDE;
    T* tiles = own_v + OWN_KEYS * STRIDE;  // two stages of queries and gradients
    float* columns = reinterpret_cast<float*>(tiles + 4 * OTHERS * STRIDE);  // their lse and delta
    float* sheet = columns + 4 * OTHERS;
    const Work work = work_of(blockIdx.x, (keys + OWN_KEYS - 1) / OWN_KEYS, all_heads, group);
    const int head = work.head, first_key = work.tile * OWN_KEYS;  // the first are seen by the most
    const Rows query = rows_of(q, q_batch, q_head, q_row, head, heads, width);
    const Rows upstream = rows_of(g, g_batch, g_head, g_row, head, heads, width);
    const float* head_stats = stats + static_cast<int64_t>(head) * 2 * padded;

    auto begin_to_load = [&](int tile) {
        const int first = tile * OTHERS, stage = tile % 2, i = 4 * threadIdx.x;
        T* at = tiles + stage * 2 * OTHERS * STRIDE;
        load<OTHERS>(at, query, first, queries, width);
        load<OTHERS>(at + OTHERS * STRIDE, upstream, first, queries, width);
        if (i < 2 * OTHERS)
            cp_async_16(columns + stage * 2 * OTHERS + i,
                        head_stats + i / OTHERS * padded + first + i % OTHERS);
        cp_async_commit();
    };

    const int own_row = unit_first(OWN_KEYS), own_key = first_key + own_row;
    const int begin = max(0, first_key - offset) / OTHERS;
    const int end = (queries + OTHERS - 1) / OTHERS;
    Sums<UNIT> sums_k = {}, sums_v = {};
    Operand<UNIT, HOLD_K> mine_k = {own_k, own_row};
    Operand<UNIT, HOLD_V> mine_v = {own_v, own_row};
    if (begin < end) {
        const Rows key = rows_of(k, k_batch, k_head, k_row, head, heads, width);
        const Rows value = rows_of(v, v_batch, v_head, v_row, head, heads, width);
        load<OWN_KEYS>(own_k, key, first_key, keys, width);
        if (WANTED & 1) load<OWN_KEYS>(own_v, value, first_key, keys, width);
        begin_to_load(begin);
        cp_async_wait<0>();
        __syncthreads();
        mine_k.hold();
        if (WANTED & 1) mine_v.hold();
    }
#pragma unroll 1
    for (int tile = begin; tile < end; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there, and nobody reads the one before any more
        if (tile + 1 < end) begin_to_load(tile + 1);
        T* tile_q = tiles + tile % 2 * 2 * OTHERS * STRIDE;
        T* tile_g = tile_q + OTHERS * STRIDE;
#pragma unroll 1
        for (int start = 0; start < OTHERS; start += CHUNK) {
            const int first = tile * OTHERS + start;
            if (first + CHUNK - 1 + offset < own_key || first >= queries || own_key >= keys) continue;
            const float* lse = columns + tile % 2 * 2 * OTHERS + start;
            const float* delta = lse + OTHERS;
            Part p, ds;
            p.multiply(mine_k, tile_q, start);
            bool any_far = false;
#pragma unroll
            for (int n = 0; n < Part::size; n++)
                if (Part::which(n) == 0) any_far |= is_far(lse[Part::col(n)]);
            if (any_far) {
#pragma unroll
                for (int n = 0; n < Part::size; n++)
                    p[n] = weight(p[n], lse[Part::col(n)], scale, true);
            } else {
#pragma unroll
                for (int n = 0; n < Part::size; n++)
                    p[n] = weight(p[n], lse[Part::col(n)], scale, false);
            }
            if (first + offset < own_key + UNIT - 1) {
#pragma unroll
                for (int n = 0; n < Part::size; n++)
                    if (own_key + Part::row(n) > first + Part::col(n) + offset) p[n] = 0.0f;
            }
            unsigned kept = ~0u;
            if (DROPOUT)
                kept = Part::template keep<true>({seed, counter, state, threshold, keys},
                                                 static_cast<int64_t>(head) * queries, own_key,
                                                 first);
            if (WANTED & 2) {
                Part dropped = p;
                if (DROPOUT)
#pragma unroll
                    for (int n = 0; n < Part::size; n++)
                        dropped[n] = kept >> n & 1 ? p[n] * inverse_keep : 0.0f;
                sums_v.add(dropped, tile_g, start, sheet);
            }
            if (WANTED & 1) {
                ds.multiply(mine_v, tile_g, start);
#pragma unroll
                for (int n = 0; n < Part::size; n++) {
                    if (DROPOUT) ds[n] = kept >> n & 1 ? ds[n] * inverse_keep : 0.0f;
                    ds[n] = p[n] * (ds[n] - delta[Part::col(n)]);
                }
                sums_k.add(ds, tile_q, start, sheet);
            }
        }
    }
    if (WANTED & 1)
        sums_k.write(scale, own_k, own_row,
                     rows_of(dk, dk_batch, dk_head, dk_row, head, heads, width), first_key, keys,
                     width);
    if (WANTED & 2)
        sums_v.write(1.0f, own_v, own_row,
                     rows_of(dv, dv_batch, dv_head, dv_row, head, heads, width), first_key, keys,
                     width);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_queries(
    const T* q, const T* k, const T* v, const T* g, const float* stats, T* dq, int64_t q_batch,
    int64_t q_head, int64_t q_row, int64_t k_batch, int64_t k_head, int64_t k_row, int64_t v_batch,
    int64_t v_head, int64_t v_row, int64_t g_batch, int64_t g_head, int64_t g_row,
    int64_t dq_batch, int64_t dq_head, int64_t dq_row, int all_heads, int heads, int queries,
    int keys, int padded, int width, int offset, int group, float scale, float inverse_keep,
    uint64_t seed, uint64_t counter, const uint64_t* state, unsigned threshold) {
    constexpr int UNIT = unit_rows(OWN_QUERIES);
    using Part = Scores<UNIT, CHUNK>;
    DYN_SMEM(memory);
    T* own_q = reinterpret_cast<T*>(memory);
    T* own_g = own_q + OWN_QUERIES * STRIDE;
    T* tiles = own_g + OWN_QUERIES * STRIDE;  // two stages of keys and values
    float* sheet = reinterpret_cast<float*>(tiles + 4 * OTHERS * STRIDE);
    const int blocks = (queries + OWN_QUERIES - 1) / OWN_QUERIES;
    const Work work = work_of(blockIdx.x, blocks, all_heads, group);
    const int head = work.head;
    const int first_query = (blocks - 1 - work.tile) * OWN_QUERIES;  // the last see the most keys
    const Rows key = rows_of(k, k_batch, k_head, k_row, head, heads, width);
    const Rows value = rows_of(v, v_batch, v_head, v_row, head, heads, width);

    auto begin_to_load = [&](int tile) {
        T* at = tiles + tile % 2 * 2 * OTHERS * STRIDE;
        load<OTHERS>(at, key, tile * OTHERS, keys, width);
        load<OTHERS>(at + OTHERS * STRIDE, value, tile * OTHERS, keys, width);
        cp_async_commit();
    };

    const int own_row = unit_first(OWN_QUERIES), own_query = first_query + own_row;
    const int last_query = min(queries, first_query + OWN_QUERIES) - 1;
    const int end = (visible(last_query, offset, keys) + OTHERS - 1) / OTHERS;
    Sums<UNIT> sums = {};
    Operand<UNIT, HOLD_Q> mine_q = {own_q, own_row};
    Operand<UNIT, HOLD_G> mine_g = {own_g, own_row};
    float lse[Part::owned], delta[Part::owned];
    bool any_far = false;
#pragma unroll
    for (int i = 0; i < Part::owned; i++) {
        // a query past the last is no row of memory here; its sums are not written
        const int query = min(own_query + Part::own(i), queries - 1);
        const float* at = stats + static_cast<int64_t>(head) * 2 * padded + query;
        lse[i] = at[0];
        delta[i] = at[padded];
        any_far |= is_far(lse[i]);
    }
    if (end) {
        const Rows query = rows_of(q, q_batch, q_head, q_row, head, heads, width);
        const Rows upstream = rows_of(g, g_batch, g_head, g_row, head, heads, width);
        load<OWN_QUERIES>(own_q, query, first_query, queries, width);
        load<OWN_QUERIES>(own_g, upstream, first_query, queries, width);
        begin_to_load(0);
        cp_async_wait<0>();
        __syncthreads();
        mine_q.hold();
        mine_g.hold();
    }
    const int seen_by_some = visible(min(own_query + UNIT - 1, last_query), offset, keys);
    const int seen_by_all = visible(own_query, offset, keys);
#pragma unroll 1
    for (int tile = 0; tile < end; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there, and nobody reads the one before any more
        if (tile + 1 < end) begin_to_load(tile + 1);
        T* tile_k = tiles + tile % 2 * 2 * OTHERS * STRIDE;
        T* tile_v = tile_k + OTHERS * STRIDE;
#pragma unroll 1
        for (int start = 0; start < OTHERS; start += CHUNK) {
            const int first = tile * OTHERS + start;
            if (first >= seen_by_some || own_query >= queries) break;
            Part p, ds;
            p.multiply(mine_q, tile_k, start);
            ds.multiply(mine_g, tile_v, start);
            if (any_far) {
#pragma unroll
                for (int n = 0; n < Part::size; n++)
                    p[n] = weight(p[n], lse[Part::which(n)], scale, true);
            } else {
#pragma unroll
                for (int n = 0; n < Part::size; n++)
                    p[n] = weight(p[n], lse[Part::which(n)], scale, false);
            }
            if (first + CHUNK > seen_by_all) {
#pragma unroll
                for (int n = 0; n < Part::size; n++)
                    if (first + Part::col(n) >= visible(own_query + Part::row(n), offset, keys))
                        p[n] = 0.0f;
            }
            if (DROPOUT) {
                const unsigned kept = Part::template keep<false>(
                    {seed, counter, state, threshold, keys}, static_cast<int64_t>(head) * queries,
                    own_query, first);
#pragma unroll
                for (int n = 0; n < Part::size; n++)
                    ds[n] = kept >> n & 1 ? ds[n] * inverse_keep : 0.0f;
            }
#pragma unroll
            for (int n = 0; n < Part::size; n++)
                ds[n] = p[n] * (ds[n] - delta[Part::which(n)]);
            sums.add(ds, tile_k, start, sheet);
        }
    }
    sums.write(scale, own_q, own_row, rows_of(dq, dq_batch, dq_head, dq_row, head, heads, width),
               first_query, queries, width);
}
