// Many tensors in one launch: a table of tensors, and a table that tells each block its chunk.
//
// gpugrad/optim/chunks.py builds both tables. A chunk is read in vectors of 4 elements (16 bytes of
// float32) where all its arrays are aligned to them, else, and at its end, element by element.
#pragma once

#include "common.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int THREADS = 256;
enum Type { FLOAT32, BFLOAT16, FLOAT16 };  // as GPUGRAD_DTYPE

// `narrow` is the parameter in half precision beside its float32 master copy `x`, or null. `step`
// counts the steps taken with it, this one included. `row` is its row of 8 settings.
struct Tensor {
    float* x;
    uint16_t* narrow;
    void* g;
    float* first;
    float* second;
    int32_t* step;
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

template <int W, typename E>
__device__ __forceinline__ Vector<E, W> load(const E* p) {
    return *reinterpret_cast<const Vector<E, W>*>(p);
}
template <int W, typename E>
__device__ __forceinline__ void store(E* p, const Vector<E, W>& vector) {
    *reinterpret_cast<Vector<E, W>*>(p) = vector;
}
template <int W, typename E>
__device__ __forceinline__ bool aligned(const E* p) {
    return reinterpret_cast<uint64_t>(p) % sizeof(Vector<E, W>) == 0;
}

// Both kinds of half precision, by their bits and code: the type is that of a tensor, not of the
// kernel, and choosing costs two instructions, less than a copy of the kernel for each type.
__device__ __forceinline__ float widened(uint16_t bits, int type) {
    return type == BFLOAT16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                            : __half2float(__ushort_as_half(bits));
}
__device__ __forceinline__ uint16_t rounded(float x, int type) {
    return type == BFLOAT16 ? __bfloat16_as_ushort(__float2bfloat16(x))
                            : __half_as_ushort(__float2half(x));
}

__device__ __forceinline__ int64_t chunk_start(Chunk c, int chunk) {
    return static_cast<int64_t>(c.number) * chunk;
}
__device__ __forceinline__ int chunk_length(const Tensor& t, int64_t start, int chunk) {
    const int64_t left = t.length - start;
    return static_cast<int>(left < chunk ? left : chunk);
}

// Elements [from, to), W at a time: all arrays are read, step(x, g, first, second) changes all but
// g, and they are written back.
template <int W, int STATES, typename Step>
__device__ __forceinline__ void update_elements(const Tensor& t, int from, int to, double factor,
                                                const Step& step) {
    const bool wide = t.g_type == FLOAT32;
#pragma unroll 1
    for (int i = from + static_cast<int>(threadIdx.x) * W; i < to; i += THREADS * W) {
        Vector<float, W> x = load<W>(t.x + i), g{}, first{}, second{};
        Vector<uint16_t, W> narrow{}, half_g{};
        if (STATES > 0) first = load<W>(t.first + i);
        if (STATES > 1) second = load<W>(t.second + i);
        if (t.narrow) narrow = load<W>(t.narrow + i);
        if (wide) g = load<W>(static_cast<const float*>(t.g) + i);
        if (!wide) half_g = load<W>(static_cast<const uint16_t*>(t.g) + i);
#pragma unroll
        for (int k = 0; k < W; k++) {
            float& value = x.values[k];
            if (t.narrow) {  // what somebody else wrote into the parameter counts
                const float now = widened(narrow.values[k], t.narrow_type);
                if (widened(rounded(value, t.narrow_type), t.narrow_type) != now) value = now;
            }
            float gradient = wide ? g.values[k] : widened(half_g.values[k], t.g_type);
            if (factor != 1.0) gradient = static_cast<float>(gradient * factor);
            step(value, gradient, first.values[k], second.values[k]);
            narrow.values[k] = rounded(value, t.narrow_type);
        }
        store(t.x + i, x);
        if (STATES > 0) store(t.first + i, first);
        if (STATES > 1) store(t.second + i, second);
        if (t.narrow) store(t.narrow + i, narrow);
    }
}

// What to multiply gradients with. `clip` holds the norm of all gradients and this factor, NaN for
// no step at all (grad_norm.cu); null: the factor is 1.
__device__ __forceinline__ double factor_of(const double* clip) { return clip ? clip[1] : 1.0; }

// One block's chunk of an optimiser's step on STATES float32 arrays per parameter.
template <int STATES, typename Step>
__device__ __forceinline__ void update_chunk(Tensor t, Chunk c, int chunk, const double* clip,
                                             const Step& step) {
    const double factor = factor_of(clip);
    if (isnan(factor)) return;
    const int64_t start = chunk_start(c, chunk);
    const int count = chunk_length(t, start, chunk);
    const int g_size = t.g_type == FLOAT32 ? 4 : 2;
    t.x += start;
    t.g = static_cast<char*>(t.g) + start * g_size;
    if (t.narrow) t.narrow += start;
    if (STATES > 0) t.first += start;
    if (STATES > 1) t.second += start;
    const bool vectors = aligned<4>(t.x) && reinterpret_cast<uint64_t>(t.g) % (4 * g_size) == 0 &&
                         aligned<4>(t.narrow) && aligned<4>(t.first) && aligned<4>(t.second);
    const int end = vectors ? count / 4 * 4 : 0;
    update_elements<4, STATES>(t, 0, end, factor, step);
    update_elements<1, STATES>(t, end, count, factor, step);
}
