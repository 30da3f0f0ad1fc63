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
        left[i / 8][i % 8] = bf16 ? pack_bf16(a[2 * i], a[2 * i + 1]) : pack_f16(a[2 * i], a[2 * i + 1]);
    for (int i = lane; i < 64; i += 32)
        right[i / 8][i % 8] = bf16 ? pack_bf16(b[2 * i], b[2 * i + 1]) : pack_f16(b[2 * i], b[2 * i + 1]);
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
    for (int i = 0; i < 4; i++) out[lane * 10 + i] = plain[i], out[lane * 10 + 4 + i] = transposed[i];
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
            cp_async_16(&buffer[(t + 1) % 2][4 * i], x + 256 * (t + 1) + 4 * i, 256 * (t + 1) + 4 * i < n);
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
