// What every kernel shares: fixed-width types, the element type, 16-byte packs, reductions.
//
// GPUGRAD_DTYPE chooses the element type T: 0 float32 (default), 1 bfloat16, 2 float16. Arithmetic
// is in float32; T appears only where memory is read or written.
#pragma once

#ifndef GPUGRAD_EMULATE  // NVRTC has no <cstdint>
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#endif

#ifndef GPUGRAD_DTYPE
#define GPUGRAD_DTYPE 0
#endif
#if GPUGRAD_DTYPE == 1
#include <cuda_bf16.h>
using T = __nv_bfloat16;
__device__ __forceinline__ float to_float(T x) { return __bfloat162float(x); }
__device__ __forceinline__ T from_float(float x) { return __float2bfloat16(x); }
#elif GPUGRAD_DTYPE == 2
#include <cuda_fp16.h>
using T = __half;
__device__ __forceinline__ float to_float(T x) { return __half2float(x); }
__device__ __forceinline__ T from_float(float x) { return __float2half(x); }
#else
using T = float;
__device__ __forceinline__ float to_float(T x) { return x; }
__device__ __forceinline__ T from_float(float x) { return x; }
#endif

constexpr int WARP = 32;
constexpr unsigned FULL = 0xffffffffu;
#define INF __int_as_float(0x7f800000)
__device__ __forceinline__ float value_nan() { return __int_as_float(0x7fc00000); }

// 16 bytes of T: one load or store instruction.
struct alignas(16) Pack {
    static constexpr int size = 16 / sizeof(T);
    T values[size];
};

// Whether an address suits a Pack. A row may be read in packs if its start does, and if every row
// starts so: columns % Pack::size == 0.
__device__ __forceinline__ bool aligned16(const void* p) {
    return reinterpret_cast<uint64_t>(p) % 16 == 0;
}
__device__ __forceinline__ Pack load_pack(const T* p) { return *reinterpret_cast<const Pack*>(p); }
__device__ __forceinline__ void store_pack(T* p, const Pack& pack) {
    *reinterpret_cast<Pack*>(p) = pack;
}

// The Pack at p, of which `count` elements exist: in one load if that may be (`aligned`) and it is
// whole, else element by element, zeros for those that do not exist.
__device__ __forceinline__ Pack load_part(const T* p, int64_t count, bool aligned) {
    if (aligned && count >= Pack::size) return load_pack(p);
    Pack pack;
#pragma unroll
    for (int i = 0; i < Pack::size; i++) pack.values[i] = i < count ? p[i] : from_float(0.0f);
    return pack;
}
__device__ __forceinline__ void store_part(T* p, const Pack& pack, int64_t count, bool aligned) {
    if (aligned && count >= Pack::size) {
        store_pack(p, pack);
        return;
    }
#pragma unroll
    for (int i = 0; i < Pack::size; i++)
        if (i < count) p[i] = pack.values[i];
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL, x, offset));
    return x;
}

// Sum over a block of `threads` (a multiple of 32); every thread gets the result. `scratch` holds
// 32 floats and may be reused at once: the second barrier keeps a fast warp from overwriting it
// while a slow one still reads.
__device__ __forceinline__ float block_sum(float x, float* scratch, int threads) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < threads / WARP ? scratch[lane] : 0.0f;
    x = warp_sum(x);
    __syncthreads();
    return x;
}
