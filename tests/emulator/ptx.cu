// Kernels over the wrappers of ptx.cuh, sound ones first.
#include "../../kernels/ptx.cuh"
#ifndef DYN_SMEM
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#endif

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
    if (threadIdx.x < 2) mbarrier_init(&full[threadIdx.x], 1);
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
    if (threadIdx.x == 0) mbarrier_init(&full, 1);
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
    if (threadIdx.x == 0) mbarrier_init(&full, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(&full, 64);
        cp_async_bulk(tile, x, 256, &full);
    }
    mbarrier_wait(&full, 0);  // HERE
    out[threadIdx.x] = tile[threadIdx.x];
}
#endif
