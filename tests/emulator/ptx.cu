// Kernels over the wrappers of ptx.cuh, sound ones first.
#include "../../kernels/common.cuh"
#include "../../kernels/ptx.cuh"

// out (16, 8) = a (16, 16) b (8, 16)^T, float32 in, one warp; rounded to bfloat16 if `bf16`
extern "C" __global__ void multiply(const float* a, const float* b, float* out, int bf16) {
    __shared__ __align__(16) unsigned left[16][8], right[8][8];
    const int lane = threadIdx.x;
    for (int i = lane; i < 128; i += 32)
        left[i / 8][i % 8] =
            bf16 ? pack_bf16(a[2 * i], a[2 * i + 1]) : pack_f16(a[2 * i], a[2 * i + 1]);
    for (int i = lane; i < 64; i += 32)
        right[i / 8][i % 8] =
            bf16 ? pack_bf16(b[2 * i], b[2 * i + 1]) : pack_f16(b[2 * i], b[2 * i + 1]);
    __syncwarp();
    unsigned x[4], y[2];
    ldmatrix_x4(x, &left[lane % 16][lane / 16 * 4]);
    ldmatrix_x2(y, &right[lane % 8][lane / 8 % 2 * 4]);
    float sums[4] = {1, 1, 1, 1};
    if (bf16) mma_bf16(sums, x, y);
    else mma_f16(sums, x, y);
    for (int i = 0; i < 4; i++) out[(lane / 4 + 8 * (i / 2)) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

// out[lane] = the fragments of four 8 by 8 matrices, plain and transposed
extern "C" __global__ void fragments(const uint16_t* x, unsigned* out) {
    __shared__ __align__(16) uint16_t tile[32][8];
    const int lane = threadIdx.x;
    for (int i = 0; i < 8; i++) tile[lane][i] = x[lane * 8 + i];
    __syncwarp();
    unsigned plain[4], transposed[4], two[2];
    ldmatrix_x4(plain, tile[lane]);
    ldmatrix_x4_trans(transposed, tile[lane]);
    ldmatrix_x2_trans(two, tile[lane % 16]);
    for (int i = 0; i < 4; i++)
        out[lane * 10 + i] = plain[i], out[lane * 10 + 4 + i] = transposed[i];
    for (int i = 0; i < 2; i++) out[lane * 10 + 8 + i] = two[i];
}

// out = sum over tiles of 256 floats, the next tile copied while this one is added
extern "C" __global__ void pipeline(const float* x, float* out, int tiles, int n) {
    __shared__ __align__(16) float buffer[2][256];
    const int i = threadIdx.x;
    float sums[4] = {};
    cp_async_16(&buffer[0][4 * i], x + 4 * i, 4 * i < n);
    cp_async_commit();
    for (int t = 0; t < tiles; t++) {
        if (t + 1 < tiles)
            cp_async_16(&buffer[(t + 1) % 2][4 * i], x + 256 * (t + 1) + 4 * i,
                        256 * (t + 1) + 4 * i < n);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        for (int k = 0; k < 4; k++) sums[k] += buffer[t % 2][(4 * i + k + 4) % 256];
        __syncthreads();
    }
    for (int k = 0; k < 4; k++) out[4 * i + k] = sums[k];
}

// the first warp writes what the second reads; the third never waits
extern "C" __global__ void producer(const float* x, float* out) {
    __shared__ float tile[32];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        tile[lane] = x[lane];
        named_barrier_arrive(1, 64);
    } else if (threadIdx.x < 64) {
        named_barrier_sync(1, 64);
        out[lane] = tile[31 - lane];
    }
}

extern "C" __global__ void powers(const float* x, float* out) {
    out[threadIdx.x] = exp2_approx(x[threadIdx.x]);
}

// a ring of two buffers: warp 0 fills, warp 1 sums; `full` and `empty` say whose turn it is
extern "C" __global__ void ring(const float* x, float* out, int tiles) {
    __shared__ float buffer[2][32];
    __shared__ uint64_t full[2], empty[2];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 2)
        mbarrier_init(&full[threadIdx.x], 32), mbarrier_init(&empty[threadIdx.x], 32);
    __syncthreads();
    float sum = 0;
    for (int t = 0; t < tiles; t++) {
        const int slot = t % 2, parity = t / 2 % 2;
        if (threadIdx.x < 32) {
            mbarrier_wait(&empty[slot], parity ^ 1);
            buffer[slot][lane] = x[32 * t + lane];
            mbarrier_arrive(&full[slot]);
        } else {
            mbarrier_wait(&full[slot], parity);
            sum += buffer[slot][31 - lane];
            mbarrier_arrive(&empty[slot]);
        }
    }
    if (threadIdx.x >= 32) out[lane] = sum;
}

#if defined(GPUGRAD_EMULATE) || __CUDA_ARCH__ >= 900
// the same sum, filled by bulk copies that thread 0 issues one tile ahead
extern "C" __global__ void bulk_ring(const float* x, float* out, int tiles) {
    __shared__ __align__(16) float buffer[2][64];
    __shared__ uint64_t full[2];
    if (threadIdx.x < 2) mbarrier_init(&full[threadIdx.x], 1), fence_proxy_async();
    __syncthreads();
    float sum = 0;
    for (int t = -1; t < tiles; t++) {
        if (threadIdx.x == 0 && t + 1 < tiles) {
            mbarrier_arrive_expect(&full[(t + 1) % 2], 256);
            cp_async_bulk(buffer[(t + 1) % 2], x + 64 * (t + 1), 256, &full[(t + 1) % 2]);
        }
        if (t < 0) continue;
        mbarrier_wait(&full[t % 2], t / 2 % 2);
        sum += buffer[t % 2][63 - threadIdx.x];
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}

// a box as it lies in shared memory, 16-bit elements, `lines` lines of 64
extern "C" __global__ void tensor_box(const __grid_constant__ TensorMap map, uint16_t* out, int i,
                                      int j, int k, int l, int lines) {
    __shared__ __align__(1024) uint16_t tile[64 * 64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);
        fence_proxy_async();
        cp_async_tensor(tile, &map, i, j, k, l, &full);
        mbarrier_arrive_expect(&full, 128 * lines);
    }
    __syncthreads();
    mbarrier_wait(&full, 0);
    for (int n = threadIdx.x; n < 64 * lines; n += blockDim.x) out[n] = tile[n];
}
#endif

#if defined(GPUGRAD_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Element (line, i) of a tile of lines of 64, as wgmma reads it.
__device__ __forceinline__ uint16_t* in_tile(uint16_t* tile, int line, int i) {
    return tile + 64 * line + 8 * (i / 8 ^ line % 8) + i % 8;
}

// out (64, N) = 1 + a (64, 64) b (64, N), sixteen-bit elements, b given as (N, 64); N = 2 SIZE
template <bool BF16, bool REGISTERS, bool TRANSPOSED_A, bool TRANSPOSED_B, int SIZE>
__device__ __forceinline__ void group_product(const uint16_t* a, const uint16_t* b, float* out,
                                              uint16_t* a_tile, uint16_t* b_tile) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    for (int i = threadIdx.x; i < 64 * 64; i += 128)
        *(TRANSPOSED_A ? in_tile(a_tile, i % 64, i / 64) : in_tile(a_tile, i / 64, i % 64)) = a[i];
    for (int i = threadIdx.x; i < 2 * SIZE * 64; i += 128) {
        const int col = i / 64, k = i % 64;
        if (TRANSPOSED_B) *in_tile(b_tile + col / 64 * 4096, k, col % 64) = b[i];
        else *in_tile(b_tile, col, k) = b[i];
    }
    fence_proxy_async();
    __syncthreads();
    float sums[SIZE];
    for (int i = 0; i < SIZE; i++) sums[i] = 1;
    unsigned fragments[4][4];
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) {
            const uint16_t* pair = a + (row + i % 2 * 8) * 64 + 16 * k + i / 2 * 8 + lane % 4 * 2;
            fragments[k][i] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
        }
    const uint64_t left = wgmma_tile(a_tile, 1024), right = wgmma_tile(b_tile, 1024, 8192);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint64_t y = wgmma_advance(right, k * (TRANSPOSED_B ? 2048 : 32));
        if constexpr (REGISTERS)
            wgmma_registers<BF16, TRANSPOSED_B>(sums, fragments[k], y, true);
        else
            wgmma_shared<BF16, TRANSPOSED_A, TRANSPOSED_B>(
                sums, wgmma_advance(left, k * (TRANSPOSED_A ? 2048 : 32)), y, true);
    }
    wgmma_commit();
    wgmma_wait<0>(sums);
    for (int i = 0; i < SIZE; i++)
        out[(row + i % 4 / 2 * 8) * 2 * SIZE + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

// `how`: 1 bfloat16, 2 a in registers, 4 and 8 a and b transposed, 16 and 32
// 128 and 32 columns
extern "C" __global__ void warpgroup(const uint16_t* a, const uint16_t* b, float* out, int how) {
    __shared__ __align__(1024) uint16_t a_tile[4096], b_tile[8192];
#define CASE(i)                                                                       \
    if (how == i)                                                                     \
        group_product<(i & 1) != 0, (i & 2) != 0, (i & 4) != 0, (i & 8) != 0,         \
                      (i & 16) != 0 ? 64 : (i & 32) != 0 ? 16 : 32>(a, b, out, a_tile, b_tile)
    CASE(0);
    CASE(1);
    CASE(2);
    CASE(3);
    CASE(4);
    CASE(5);
    CASE(8);
    CASE(11);
    CASE(13);
    CASE(16);
    CASE(17);
    CASE(19);
    CASE(24);
    CASE(27);
    CASE(29);
    CASE(32);
    CASE(33);
    CASE(35);
    CASE(43);
#undef CASE
}

// Two warpgroups and a producer with other numbers of registers; out = 2 x, by products with the
// identity, one wait behind: the sums of a tile are read while the next product is under way.
extern "C" __global__ void __launch_bounds__(384, 1)
    warpgroup_ring(const uint16_t* x, float* out, int tiles) {
    __shared__ __align__(1024) uint16_t ring[2][4096];
    __shared__ __align__(1024) uint16_t two[4096];
    __shared__ uint64_t full[2], empty[2];
    if (threadIdx.x < 2)
        mbarrier_init(&full[threadIdx.x], 128), mbarrier_init(&empty[threadIdx.x], 8);
    for (int i = threadIdx.x; i < 4096; i += 384)
        *in_tile(two, i / 64, i % 64) = i / 64 == i % 64 ? 0x4000 : 0;  // 2 as bfloat16
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x >= 256) {
        registers_give<40>();
        for (int t = 0; t < tiles; t++) {
            mbarrier_wait(&empty[t % 2], t / 2 % 2 ^ 1);
            for (int i = threadIdx.x - 256; i < 512; i += 128)
                cp_async_16(in_tile(ring[t % 2], i / 8, i % 8 * 8), x + 4096 * t + 8 * i);
            cp_async_commit();
            cp_async_wait<0>();
            fence_proxy_async();
            mbarrier_arrive(&full[t % 2]);
        }
    } else {
        registers_take<232>();
        const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
        const uint64_t right = wgmma_tile(two, 1024);
        for (int t = 0; t < tiles; t++) {
            float sums[32];
            const uint64_t left = wgmma_tile(ring[t % 2], 1024);
            mbarrier_wait(&full[t % 2], t / 2 % 2);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; k++)
                wgmma_shared<true, false, false>(sums, wgmma_advance(left, 32 * k),
                                                 wgmma_advance(right, 32 * k), k > 0);
            wgmma_commit();
            wgmma_wait<0>(sums);
            __syncwarp();  // all its lanes have waited
            if (lane == 0) mbarrier_arrive(&empty[t % 2]);
            if (threadIdx.x / 128 == t % 2)
                for (int i = 0; i < 32; i++)
                    out[4096 * t + (row + i % 4 / 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] =
                        sums[i];
        }
    }
}

// The same for tiles that one thread lets the copy engine fetch: products of what it wrote.
extern "C" __global__ void __launch_bounds__(256, 1)
    tensor_ring(const __grid_constant__ TensorMap map, float* out, int tiles) {
    __shared__ __align__(1024) uint16_t ring[2][4096];
    __shared__ __align__(1024) uint16_t two[4096];
    __shared__ uint64_t full[2], empty[2];
    if (threadIdx.x < 2)
        mbarrier_init(&full[threadIdx.x], 1), mbarrier_init(&empty[threadIdx.x], 4);
    for (int i = threadIdx.x; i < 4096; i += 256)
        *in_tile(two, i / 64, i % 64) = i / 64 == i % 64 ? 0x4000 : 0;  // 2 as bfloat16
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x >= 128) {
        if (threadIdx.x > 128) return;
        for (int t = 0; t < tiles; t++) {
            mbarrier_wait(&empty[t % 2], t / 2 % 2 ^ 1);
            cp_async_tensor(ring[t % 2], &map, 0, 0, t, 0, &full[t % 2]);
            mbarrier_arrive_expect(&full[t % 2], 8192);
        }
    } else {
        const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
        const uint64_t right = wgmma_tile(two, 1024);
        for (int t = 0; t < tiles; t++) {
            float sums[32];
            const uint64_t left = wgmma_tile(ring[t % 2], 1024);
            mbarrier_wait(&full[t % 2], t / 2 % 2);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; k++)
                wgmma_shared<true, false, false>(sums, wgmma_advance(left, 32 * k),
                                                 wgmma_advance(right, 32 * k), k > 0);
            wgmma_commit();
            wgmma_wait<0>(sums);
            __syncwarp();  // all its lanes have waited
            if (lane == 0) mbarrier_arrive(&empty[t % 2]);
            for (int i = 0; i < 32; i++)
                out[4096 * t + (row + i % 4 / 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] =
                    sums[i];
        }
    }
}
#endif

// ---- planted mistakes, marked as in planted.cu ----

// Race variable=tile: nobody waits for the copy.
extern "C" __global__ void copy_without_wait(const float* x, float* out) {
    __shared__ __align__(16) float tile[128];
    cp_async_16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);  // HERE
    cp_async_commit();
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];  // HERE
}

// Race variable=tile: the wait leaves the newest group under way, and that is the one needed.
extern "C" __global__ void copy_with_weak_wait(const float* x, float* out) {
    __shared__ __align__(16) float tile[128];
    cp_async_16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);  // HERE
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];  // HERE
}

// Race variable=tile: a copy that was never committed is in no group.
extern "C" __global__ void copy_without_commit(const float* x, float* out) {
    __shared__ __align__(16) float tile[128];
    cp_async_16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);  // HERE
    cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];  // HERE
}

// Race variable=tile: a thread waits for its own copies only; others need a barrier.
extern "C" __global__ void copy_without_barrier(const float* x, float* out) {
    __shared__ __align__(16) float tile[128];
    cp_async_16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);  // HERE
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = tile[127 - threadIdx.x];  // HERE
}

// Race variable=tile: the next copy starts while others still read the buffer.
extern "C" __global__ void copy_into_read_buffer(const float* x, float* out) {
    __shared__ __align__(16) float tile[128];
    float sum = 0;
    for (int t = 0; t < 2; t++) {
        cp_async_16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);  // HERE
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        sum += tile[127 - threadIdx.x];  // HERE
    }
    out[threadIdx.x] = sum;
}

// Misaligned: 16 bytes from an address that is a multiple of 4.
extern "C" __global__ void misaligned_copy(const float* x, float* out) {
    __shared__ __align__(16) float tile[128];
    cp_async_16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x + 1);  // HERE
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = tile[4 * threadIdx.x];
}

// OutOfBounds variable=x: the last copy reads beyond the array.
extern "C" __global__ void copy_past_the_end(const float* x, float* out, int n) {
    __shared__ __align__(16) float tile[256];
    const int i = 8 * threadIdx.x;
    cp_async_16(&tile[i], x + i, i < n);  // HERE
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = tile[i];
}

// Misaligned: the rows of a matrix for ldmatrix are 16 bytes apart at least.
extern "C" __global__ void misaligned_rows(float* out) {
    __shared__ __align__(16) uint16_t tile[256];
    for (int i = 0; i < 8; i++) tile[8 * threadIdx.x + i] = 0;
    __syncwarp();
    unsigned x[4];
    ldmatrix_x4(x, tile + 4 * threadIdx.x);  // HERE
    out[threadIdx.x] = x[0];
}

// Race variable=tile: ldmatrix reads rows that other lanes wrote.
extern "C" __global__ void ldmatrix_without_syncwarp(float* out) {
    __shared__ __align__(16) uint16_t tile[32][8];
    for (int i = 0; i < 8; i++) tile[31 - threadIdx.x][i] = 0;  // HERE
    unsigned x[4];
    ldmatrix_x4(x, tile[threadIdx.x]);  // HERE
    out[threadIdx.x] = x[0];
}

// Deadlock: mma by half of a warp, while the other half waits for the first.
extern "C" __global__ void mma_in_divergent_code(float* out) {
    float sums[4] = {};
    const unsigned a[4] = {}, b[2] = {};
    if (threadIdx.x < 16) mma_bf16(sums, a, b);  // HERE
    else __syncthreads();                        // HERE
    out[threadIdx.x] = sums[0];
}

// WarpMismatch: two halves of a warp at two products.
extern "C" __global__ void mma_at_two_lines(float* out) {
    float sums[4] = {};
    const unsigned a[4] = {}, b[2] = {};
    if (threadIdx.x < 16) mma_bf16(sums, a, b);  // HERE
    else mma_bf16(sums, a, b);                   // HERE
    out[threadIdx.x] = sums[0];
}

// Deadlock: a named barrier for more threads than come.
extern "C" __global__ void named_barrier_too_wide(float* x) {
    if (threadIdx.x < 32) named_barrier_sync(1, 64);  // HERE
    x[threadIdx.x] = 0;
}

// Race variable=tile: a named barrier of two warps orders no third.
extern "C" __global__ void named_barrier_of_others(const float* x, float* out) {
    __shared__ float tile[32];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) tile[lane] = x[lane];  // HERE
    if (threadIdx.x < 64) named_barrier_sync(1, 64);
    else out[lane] = tile[lane];  // HERE
}

// Race variable=tile: nobody waits for the mbarrier.
extern "C" __global__ void mbarrier_without_wait(const float* x, float* out) {
    __shared__ float tile[32];
    __shared__ uint64_t full;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) mbarrier_init(&full, 32);
    __syncthreads();
    if (threadIdx.x < 32) {
        tile[lane] = x[lane];  // HERE
        mbarrier_arrive(&full);
    } else {
        out[lane] = tile[lane];  // HERE
    }
}

// Race variable=tile: parity 1 is that of the phase before the first, so this wait does nothing.
extern "C" __global__ void mbarrier_wrong_parity(const float* x, float* out) {
    __shared__ float tile[32];
    __shared__ uint64_t full;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) mbarrier_init(&full, 32);
    __syncthreads();
    if (threadIdx.x < 32) {
        tile[lane] = x[lane];  // HERE
        mbarrier_arrive(&full);
    } else {
        mbarrier_wait(&full, 1);
        out[lane] = tile[lane];  // HERE
    }
}

// Deadlock: fewer threads arrive than the mbarrier expects.
extern "C" __global__ void mbarrier_too_few(float* x) {
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 65);
    __syncthreads();
    mbarrier_arrive(&full);
    mbarrier_wait(&full, 0);  // HERE
    x[threadIdx.x] = 0;
}

// Race/Uninitialised variable=full: used before it is initialised for all.
extern "C" __global__ void mbarrier_init_without_barrier(float* x) {
    __shared__ uint64_t full;
    if (threadIdx.x == 32) mbarrier_init(&full, 32);  // HERE
    if (threadIdx.x >= 32) mbarrier_arrive(&full);    // HERE
    x[threadIdx.x] = 0;
}

// Uninitialised variable=full: never initialised.
extern "C" __global__ void mbarrier_never_initialised(float* x) {
    __shared__ uint64_t full;
    mbarrier_arrive(&full);  // HERE
    x[threadIdx.x] = 0;
}

#if defined(GPUGRAD_EMULATE) || __CUDA_ARCH__ >= 900
// DivergentBarrier: more threads arrive than the mbarrier expects, in a phase kept open by bytes.
extern "C" __global__ void mbarrier_too_many(float* x) {
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 32);
    __syncthreads();
    mbarrier_arrive_expect(&full, 16);  // HERE
    x[threadIdx.x] = 0;
}

// Race variable=tile: a bulk copy read before its barrier.
extern "C" __global__ void bulk_copy_without_wait(const float* x, float* out) {
    __shared__ __align__(16) float tile[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 1), fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(&full, 256);
        cp_async_bulk(tile, x, 256, &full);  // HERE
    }
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];  // HERE
}

// Deadlock: the announced bytes are not those that are copied.
extern "C" __global__ void bulk_copy_wrong_bytes(const float* x, float* out) {
    __shared__ __align__(16) float tile[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 1), fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(&full, 64);
        cp_async_bulk(tile, x, 256, &full);
    }
    mbarrier_wait(&full, 0);  // HERE
    out[threadIdx.x] = tile[threadIdx.x];
}

// What follows copies boxes of 8 lines, 1024 bytes.
__device__ __forceinline__ void begin(uint64_t* full, bool fence = true) {
    if (threadIdx.x == 0) mbarrier_init(full, 1);
    if (threadIdx.x == 0 && fence) fence_proxy_async();
    __syncthreads();
}

// Race/Deadlock: this parity is that of the phase before the first, or of the one after it.
extern "C" __global__ void box_wrong_parity(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive_expect(&full, 1024);
    }
    mbarrier_wait(&full, 1);               // HERE
    out[threadIdx.x] = tile[threadIdx.x];  // HERE
}

// Race/Deadlock: the arrival announces no bytes.
extern "C" __global__ void box_without_expect(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive(&full);
    }
    mbarrier_wait(&full, 0);               // HERE
    out[threadIdx.x] = tile[threadIdx.x];  // HERE
}

// Race variable=tile: the same the other way round: the phase completes before the copy begins.
extern "C" __global__ void box_after_arrival(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        mbarrier_arrive(&full);
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);  // HERE
    }
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = tile[threadIdx.x];  // HERE
}

// Deadlock: a box is announced as half of what it is.
extern "C" __global__ void box_wrong_bytes(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);
        mbarrier_arrive_expect(&full, 512);
    }
    mbarrier_wait(&full, 0);  // HERE
    out[threadIdx.x] = tile[threadIdx.x];
}

// Race variable=tile: the next copy begins while others still read the tile.
extern "C" __global__ void box_reused_early(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full[2];
    begin(&full[0]);
    begin(&full[1]);
    int sum = 0;
    for (int round = 0; round < 2; round++) {
        if (threadIdx.x == 0) {
            cp_async_tensor(tile, &map, 0, 0, 0, 0, &full[round]);  // HERE
            mbarrier_arrive_expect(&full[round], 1024);
        }
        mbarrier_wait(&full[round], 0);
        sum += tile[threadIdx.x];  // HERE
    }
    out[threadIdx.x] = sum;
}

// Race variable=full: the copy engine has not seen that the barrier was initialised.
extern "C" __global__ void box_without_fence(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 1);  // HERE
    __syncthreads();
    if (threadIdx.x == 0) {
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive_expect(&full, 1024);
    }
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = tile[threadIdx.x];
}

// Race variable=tile: ordinary stores that the copy engine has not seen may come after its own.
extern "C" __global__ void box_over_stores(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 1), fence_proxy_async();
    tile[threadIdx.x] = 0;  // HERE
    __syncthreads();
    if (threadIdx.x == 63) {
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive_expect(&full, 1024);
    }
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = tile[threadIdx.x];
}

// Race variable=tile: a barrier of the block does not wait for copies.
extern "C" __global__ void box_without_wait(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive_expect(&full, 1024);
    }
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];  // HERE
}

// Undefined: the block ends under the copy engine's hands.
extern "C" __global__ void box_nobody_waits_for(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive_expect(&full, 1024);
    }
    out[threadIdx.x] = 0;
}

// OutOfBounds: there is less memory than a box takes.
extern "C" __global__ void box_beyond_dynamic(const __grid_constant__ TensorMap map, int* out) {
    DYN_SMEM(memory);
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        cp_async_tensor(memory, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive_expect(&full, 1024);
    }
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = memory[threadIdx.x];
}

// Misaligned: a box begins at a multiple of 128.
extern "C" __global__ void box_misaligned(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[512];
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        cp_async_tensor(tile + 16, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive_expect(&full, 1024);
    }
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = tile[threadIdx.x + 16];
}

// Undefined: a map in the open, which the copy engine cannot read.
extern "C" __global__ void box_by_open_map(const __grid_constant__ TensorMap map, int* out) {
    __shared__ __align__(1024) int tile[256];
    __shared__ uint64_t full;
    begin(&full);
    if (threadIdx.x == 0) {
        cp_async_tensor(tile, &map, 0, 0, 0, 0, &full);  // HERE
        mbarrier_arrive_expect(&full, 1024);
    }
    mbarrier_wait(&full, 0);
    out[threadIdx.x] = tile[threadIdx.x];
}
#endif

// OutOfBounds: rows in global memory, whose addresses are others in shared memory.
extern "C" __global__ void ldmatrix_from_global(const float* x, int* out) {
    unsigned a[4];
    ldmatrix_x4(a, x + 4 * threadIdx.x);  // HERE
    out[threadIdx.x] = a[0];
}

// OutOfBounds: an asynchronous copy to global memory.
extern "C" __global__ void copy_to_global(const float* x, float* out) {
    cp_async_16(out + 4 * threadIdx.x, x + 4 * threadIdx.x);  // HERE
    cp_async_wait<0>();
}

// OutOfBounds: an asynchronous copy from shared memory.
extern "C" __global__ void copy_from_shared(const float* x, float* out) {
    __shared__ __align__(16) float tile[256];
    for (int i = 0; i < 4; i++) tile[4 * threadIdx.x + i] = x[threadIdx.x];
    cp_async_16(tile + 128 + 4 * threadIdx.x, tile + 4 * threadIdx.x);  // HERE
    cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = tile[128 + threadIdx.x];
}

#if defined(GPUGRAD_EMULATE) || __CUDA_ARCH__ >= 900
// OutOfBounds: a barrier in global memory.
extern "C" __global__ void mbarrier_in_global(float* x) {
    if (threadIdx.x == 0) mbarrier_init(reinterpret_cast<uint64_t*>(x), 1);  // HERE
}

// OutOfBounds: a bulk copy to global memory.
extern "C" __global__ void bulk_copy_to_global(const float* x, float* out) {
    __shared__ uint64_t full;
    if (threadIdx.x == 0) mbarrier_init(&full, 1), fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(&full, 64);
        cp_async_bulk(out, x, 64, &full);  // HERE
    }
    mbarrier_wait(&full, 0);
}
#endif

#if defined(GPUGRAD_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ void fill(uint16_t* tile) {
    for (int i = threadIdx.x; i < 4096; i += 128) *in_tile(tile, i / 64, i % 64) = i % 7 << 8;
}

// Race variable=tile: nobody told the asynchronous proxy of the stores.
extern "C" __global__ void wgmma_without_proxy_fence(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    for (int i = threadIdx.x; i < 4096; i += 128) tile[i] = 0;  // HERE
    __syncthreads();
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, t, t, false);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// Race variable=tile: the fence comes when the tile was already handed over.
extern "C" __global__ void proxy_fence_after_barrier(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    __shared__ uint64_t full;
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    if (threadIdx.x == 0) mbarrier_init(&full, 128);
    __syncthreads();
    if (threadIdx.x >= 128) {
        for (int i = threadIdx.x - 128; i < 4096; i += 128) tile[i] = 0;  // HERE
        mbarrier_arrive(&full);
        fence_proxy_async();
        return;
    }
    mbarrier_wait(&full, 0);
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, t, t, false);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// Race variable=tile: the tile is overwritten while it may still be read.
extern "C" __global__ void wgmma_tile_overwritten(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fill(tile);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, t, t, false);  // HERE
    wgmma_commit();
    __syncthreads();
    tile[threadIdx.x] = 0;  // HERE
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// Race variable=tile: of two groups only the first has been waited for.
extern "C" __global__ void wgmma_weak_wait(float* out) {
    __shared__ __align__(1024) uint16_t tile[8192];
    float sums[32], others[32];
    fill(tile);
    fill(tile + 4096);
    fence_proxy_async();
    __syncthreads();
    const uint64_t first = wgmma_tile(tile, 1024), second = wgmma_tile(tile + 4096, 1024);
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, first, first, false);
    wgmma_commit();
    wgmma_shared<true, false, false>(others, first, second, false);  // HERE
    wgmma_commit();
    wgmma_wait<1>(sums);
    __syncthreads();
    tile[4096 + threadIdx.x] = 0;  // HERE
    wgmma_wait<0>(others);
    out[threadIdx.x] = sums[0] + others[0];
}

// Race: the sums are read before they are there.
extern "C" __global__ void wgmma_sums_read_early(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fill(tile);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, t, t, false);
    wgmma_commit();
    out[threadIdx.x] = sums[0];  // HERE
    wgmma_wait<0>(sums);
}

// Race: sums are written while products add to them.
extern "C" __global__ void wgmma_sums_written_early(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fill(tile);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, t, t, false);
    wgmma_commit();
    sums[1] = 0;          // HERE
    wgmma_wait<0>(sums);  // HERE
    out[threadIdx.x] = sums[1];
}

// Race: a product's left matrix changes in its registers.
extern "C" __global__ void wgmma_fragments_written_early(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    unsigned a[4] = {1, 2, 3, 4};
    fill(tile);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    wgmma_registers<true, false>(sums, a, wgmma_tile(tile, 1024), false);  // HERE
    wgmma_commit();
    a[2] = threadIdx.x;
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0] + a[2];
}

// One for several kernels: the static shared memory of all of them has to fit a descriptor.
__device__ __forceinline__ uint16_t* filled() {
    __shared__ __align__(1024) uint16_t tile[4096];
    fill(tile);
    return tile;
}

// WarpMismatch: no wgmma_fence before the first product.
extern "C" __global__ void wgmma_without_fence(float* out) {
    uint16_t* const tile = filled();
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fence_proxy_async();
    __syncthreads();
    wgmma_shared<true, false, false>(sums, t, t, false);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// WarpMismatch: a wait ends what the fence before it allowed.
extern "C" __global__ void wgmma_without_second_fence(float* out) {
    uint16_t* const tile = filled();
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    for (int i = 0; i < 2; i++) {
        wgmma_shared<true, false, false>(sums, t, t, i > 0);  // HERE
        wgmma_commit();
        wgmma_wait<0>(sums);
        sums[0] += 1;
    }
    out[threadIdx.x] = sums[0];
}

// WarpMismatch: the sums are set to zero behind the fence.
extern "C" __global__ void wgmma_sums_behind_fence(float* out) {
    uint16_t* const tile = filled();
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    for (int i = 0; i < 32; i++) sums[i] = 0.0f;
    wgmma_shared<true, false, false>(sums, t, t, true);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// WarpMismatch: the second product's matrix a is made while the first is under way, without a fence.
extern "C" __global__ void wgmma_registers_behind_fence(float* out) {
    uint16_t* const tile = filled();
    float sums[32];
    unsigned a[2][4];
    const uint64_t t = wgmma_tile(tile, 1024);
    fence_proxy_async();
    __syncthreads();
    for (int i = 0; i < 4; i++) a[0][i] = threadIdx.x;
    wgmma_fence();
    wgmma_registers<true, false>(sums, a[0], t, false);
    wgmma_commit();
    for (int i = 0; i < 4; i++) a[1][i] = 2 * threadIdx.x;
    wgmma_registers<true, false>(sums, a[1], t, true);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// WarpMismatch: matrix a is loaded behind the fence.
extern "C" __global__ void wgmma_fragments_loaded_behind_fence(float* out) {
    uint16_t* const tile = filled();
    float sums[32];
    unsigned a[4];
    const uint64_t t = wgmma_tile(tile, 1024);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    ldmatrix_x4(a, tile + 8 * (threadIdx.x % 32));
    wgmma_registers<true, false>(sums, a, t, false);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// WarpMismatch: the warps of a warpgroup name different tiles.
extern "C" __global__ void wgmma_of_different_tiles(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fill(tile);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    const uint64_t b = wgmma_tile(tile + (threadIdx.x < 64 ? 0 : 512), 1024);
    wgmma_shared<true, false, false>(sums, t, b, false);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// Deadlock: one of the four warps does not come.
extern "C" __global__ void wgmma_of_three_warps(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fill(tile);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    if (threadIdx.x < 96) {
        wgmma_shared<true, false, false>(sums, t, t, false);  // HERE
        wgmma_commit();
        wgmma_wait<0>(sums);
        out[threadIdx.x] = sums[0];
    }
}

// WarpMismatch: half a warpgroup.
extern "C" __global__ void wgmma_of_two_warps(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, t, t, false);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// OutOfBounds/Uninitialised: the stride of the descriptor leads out of the tile.
extern "C" __global__ void wgmma_wrong_stride(float* out) {
    __shared__ __align__(1024) uint16_t tile[4096];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fill(tile);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, t, wgmma_tile(tile, 8192), false);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}

// Uninitialised variable=tile: a descriptor beyond what was written.
extern "C" __global__ void wgmma_unwritten_tile(float* out) {
    __shared__ __align__(1024) uint16_t tile[8192];
    float sums[32];
    const uint64_t t = wgmma_tile(tile, 1024);
    fill(tile);
    fence_proxy_async();
    __syncthreads();
    wgmma_fence();
    wgmma_shared<true, false, false>(sums, t, wgmma_tile(tile + 512, 1024), false);  // HERE
    wgmma_commit();
    wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0];
}
#endif
