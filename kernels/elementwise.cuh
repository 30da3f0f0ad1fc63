// What generated elementwise kernels (gpugrad/cuda/elementwise.py) are made of.
//
// One thread computes WIDTH neighbouring elements: 16 bytes of T, which is the narrowest floating
// type among the arrays; the others are float32, and uint8_t for masks. Arithmetic is in float32.
#pragma once
#include "common.cuh"

#ifndef THREADS
#define THREADS 256
#endif

constexpr int WIDTH = Pack::size;

__device__ __forceinline__ float decoded(float x) { return x; }
#if GPUGRAD_DTYPE
__device__ __forceinline__ float decoded(T x) { return to_float(x); }
#endif
__device__ __forceinline__ bool decoded(uint8_t x) { return x != 0; }

template <class E>
__device__ __forceinline__ E encoded(float x) {
    if constexpr (sizeof(E) == sizeof(float)) return x;
    else return from_float(x);
}

// What one instruction moves of WIDTH elements of E: 16 bytes, less only for masks.
template <class E>
struct alignas(sizeof(E) * WIDTH < 16 ? sizeof(E) * WIDTH : 16) Part {
    static constexpr int size = sizeof(E) * WIDTH < 16 ? WIDTH : 16 / sizeof(E);
    E values[size];
};

// WIDTH elements from p, which suits a Pack.
template <class E, class V>
__device__ __forceinline__ void load(const E* p, V* out) {
#pragma unroll
    for (int i = 0; i < WIDTH; i += Part<E>::size) {
        const Part<E> part = *reinterpret_cast<const Part<E>*>(p + i);
#pragma unroll
        for (int k = 0; k < Part<E>::size; k++) out[i + k] = decoded(part.values[k]);
    }
}

template <class E>
__device__ __forceinline__ void store(E* p, const float* values) {
#pragma unroll
    for (int i = 0; i < WIDTH; i += Part<E>::size) {
        Part<E> part;
#pragma unroll
        for (int k = 0; k < Part<E>::size; k++) part.values[k] = encoded<E>(values[i + k]);
        *reinterpret_cast<Part<E>*>(p + i) = part;
    }
}

// Where element i of the result is in an array of another layout: i counts `inner` elements that
// lie `near` apart, `outer` groups of them `far` apart, and begins again; outer 0 never does.
// Broadcast axes have distance 0. Everything is below 2**31.
__device__ __forceinline__ uint32_t place(uint32_t i, uint32_t inner, uint32_t outer, uint32_t far,
                                          uint32_t near) {
    const uint32_t group = i / inner;
    return (outer ? group % outer : group) * far + (i - group * inner) * near;
}

// WIDTH elements of such an array, from i on, which is a multiple of WIDTH: at once where they are
// neighbours or the same.
template <class E, class V>
__device__ __forceinline__ void load_placed(const E* p, uint32_t i, uint32_t inner, uint32_t outer,
                                            uint32_t far, uint32_t near, V* out) {
    const bool together = inner % WIDTH == 0;
    if (together && near == 1 && far % WIDTH == 0 && aligned16(p)) {
        load(p + place(i, inner, outer, far, near), out);
    } else if (together && near == 0) {
        const V x = decoded(p[place(i, inner, outer, far, near)]);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) out[k] = x;
    } else {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) out[k] = decoded(p[place(i + k, inner, outer, far, near)]);
    }
}

__device__ __forceinline__ float rounded(float x) { return to_float(from_float(x)); }

// NumPy's functions that CUDA has not, or, as fmaxf, without its treatment of NaN.

__device__ __forceinline__ float sign(float x) {
    return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x;
}
__device__ __forceinline__ float larger(float x, float y) { return x > y || x != x ? x : y; }
__device__ __forceinline__ float smaller(float x, float y) { return x < y || x != x ? x : y; }

__device__ __forceinline__ float log_add_exp(float x, float y) {
    if (x == y) return x + 0.69314718056f;  // infinities too
    const float d = fabsf(x - y);
    return larger(x, y) + log1pf(expf(-d));
}

__device__ __forceinline__ float floored_remainder(float x, float y) {
    const float r = fmodf(x, y);
    if (r == 0.0f) return copysignf(0.0f, y);
    return (r < 0.0f) != (y < 0.0f) ? r + y : r;
}

__device__ __forceinline__ float floored_quotient(float x, float y) {
    if (y == 0.0f) return x / y;
    const float r = fmodf(x, y);
    const float q = (x - r) / y - (r != 0.0f && (r < 0.0f) != (y < 0.0f) ? 1.0f : 0.0f);
    if (q == 0.0f) return copysignf(0.0f, x / y);
    const float whole = floorf(q);
    return q - whole > 0.5f ? whole + 1.0f : whole;
}
