// Many tensors in one launch: a table of tensors, and a table that tells each block its chunk.
//
// gpugrad/optim/chunks.py builds both tables. A chunk is read in vectors of 4 elements (16 bytes of
// float32) where all its arrays are aligned to them, else, and at its end, element by element.
#pragma once

#include "common.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int THREADS = 256;

// `narrow` is the parameter in half precision beside its float32 master copy `x`, or null. Types
// are codes as in GPUGRAD_DTYPE. `row` is the tensor's row of 8 numbers.
struct Tensor {
    float* x;
    void* narrow;
    void* g;
    float* first;
    float* second;
    int64_t length;
    int32_t narrow_type;
    int32_t g_type;
    int64_t row;
};

struct alignas(8) Chunk {
    int32_t tensor;
    int32_t number;  // within the tensor
};

template <typename E, int W>
struct alignas(W * sizeof(E)) Vector {
    E values[W];
};

template <typename E, int W>
__device__ __forceinline__ Vector<E, W> load(const E* p) {
    return *reinterpret_cast<const Vector<E, W>*>(p);
}
template <typename E, int W>
__device__ __forceinline__ void store(E* p, const Vector<E, W>& vector) {
    *reinterpret_cast<Vector<E, W>*>(p) = vector;
}
template <int W, typename E>
__device__ __forceinline__ bool aligned(const E* p) {
    return reinterpret_cast<uint64_t>(p) % sizeof(Vector<E, W>) == 0;
}

__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ void round_to(float& to, float x) { to = x; }
__device__ __forceinline__ void round_to(__nv_bfloat16& to, float x) { to = __float2bfloat16(x); }
__device__ __forceinline__ void round_to(__half& to, float x) { to = __float2half(x); }

// Calls f with the pointer to the element type of a code; uniform over a block.
template <typename F>
__device__ __forceinline__ void with_type(int code, void* p, const F& f) {
    if (code == 1) {
        f(static_cast<__nv_bfloat16*>(p));
    } else if (code == 2) {
        f(static_cast<__half*>(p));
    } else {
        f(static_cast<float*>(p));
    }
}

__device__ __forceinline__ int64_t chunk_start(Chunk c, int chunk) {
    return static_cast<int64_t>(c.number) * chunk;
}
__device__ __forceinline__ int chunk_length(const Tensor& t, int64_t start, int chunk) {
    const int64_t left = t.length - start;
    return static_cast<int>(left < chunk ? left : chunk);
}

// Elements [from, to) of a chunk, W at a time: all arrays are read, step(x, g, first, second)
// changes all but g, and they are written back. N is float where there is no `narrow`.
template <int W, int STATES, typename N, typename G, typename Step>
__device__ __forceinline__ void update_elements(float* x, N* narrow, const G* g, float* first,
                                                float* second, int from, int to, double factor,
                                                const Step& step) {
    constexpr bool HAS_NARROW = sizeof(N) == 2;
#pragma unroll 1
    for (int i = from + static_cast<int>(threadIdx.x) * W; i < to; i += THREADS * W) {
        Vector<float, W> xs = load<float, W>(x + i), firsts{}, seconds{};
        Vector<N, W> narrows{};
        const Vector<G, W> gs = load<G, W>(g + i);
        if constexpr (STATES > 0) firsts = load<float, W>(first + i);
        if constexpr (STATES > 1) seconds = load<float, W>(second + i);
        if constexpr (HAS_NARROW) narrows = load<N, W>(narrow + i);
#pragma unroll
        for (int k = 0; k < W; k++) {
            if constexpr (HAS_NARROW) {  // what somebody else wrote into the parameter counts
                N rounded;
                round_to(rounded, xs.values[k]);
                const float now = to_float(narrows.values[k]);
                if (to_float(rounded) != now) xs.values[k] = now;
            }
            float gradient = to_float(gs.values[k]);
            if (factor < 1.0) gradient = static_cast<float>(gradient * factor);
            step(xs.values[k], gradient, firsts.values[k], seconds.values[k]);
            if constexpr (HAS_NARROW) round_to(narrows.values[k], xs.values[k]);
        }
        store<float, W>(x + i, xs);
        if constexpr (STATES > 0) store<float, W>(first + i, firsts);
        if constexpr (STATES > 1) store<float, W>(second + i, seconds);
        if constexpr (HAS_NARROW) store<N, W>(narrow + i, narrows);
    }
}

// One block's chunk of an optimiser's step on STATES float32 arrays per parameter. `clip` holds the
// norm of all gradients and the factor for each of them, NaN for no step at all (grad_norm.cu);
// null: the factor is 1.
template <int STATES, typename Step>
__device__ __forceinline__ void update_chunk(const Tensor& t, Chunk c, int chunk,
                                             const double* clip, const Step& step) {
    const double factor = clip ? clip[1] : 1.0;
    if (!(factor <= 1.0)) return;
    const int64_t start = chunk_start(c, chunk);
    const int count = chunk_length(t, start, chunk);
    float *x = t.x + start, *first = t.first + start, *second = t.second + start;
    with_type(t.narrow_type, t.narrow, [&](auto* narrow) {
        if (narrow) narrow += start;
        with_type(t.g_type, t.g, [&](auto* g) {
            g += start;
            const bool vectors = aligned<4>(x) && aligned<4>(narrow) && aligned<4>(g) &&
                                 aligned<4>(first) && aligned<4>(second);
            const int end = vectors ? count / 4 * 4 : 0;
            update_elements<4, STATES>(x, narrow, g, first, second, 0, end, factor, step);
            update_elements<1, STATES>(x, narrow, g, first, second, end, count, factor, step);
        });
    });
}
