// Dropout, and dropout added to a residual stream.
//
// x, residual, out (n) of T. Element i is kept where word i of the draw at (seed, offset) is at
// least the threshold, round(p * 2^32): see philox.cuh. No mask is stored: the gradient is dropout
// of the incoming gradient with the same two integers,
// or with the same two relative to `state` (philox.cuh: locate).
//   dropout:      out = keep ? x * scale : 0
//   dropout_add:  out = residual + (keep ? x * scale : 0), rounded to T before and after the sum,
//                 as two operations would
// A thread takes packs of 16 bytes in turn and draws the one or two blocks of words they need while
// the load is under way. Arithmetic in float32; nothing is saved; a dropped NaN is 0.
// Bytes: 2 n sizeof(T), dropout_add 3 n sizeof(T).  About 25 instructions per element.
#include "common.cuh"
#include "philox.cuh"

constexpr int THREADS = 256;

template <bool ADD>
__device__ __forceinline__ void drop(const T* x, const T* residual, T* out, int64_t n,
                                     uint64_t seed, uint64_t offset, const uint64_t* state,
                                     uint64_t threshold, float scale) {
    constexpr int SIZE = Pack::size;
    locate(state, seed, offset);
    const bool aligned = aligned16(x) && aligned16(out) && (!ADD || aligned16(residual));
    const int64_t packs = (n + SIZE - 1) / SIZE;
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    int64_t pack = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
#pragma unroll 1
    for (; pack < packs; pack += step) {
        const int64_t start = pack * SIZE;
        const bool whole = aligned && start + SIZE <= n;
        Pack values, added;
        if (whole) {
            values = load_pack(x + start);
            if (ADD) added = load_pack(residual + start);
        } else {
            for (int i = 0; i < SIZE; i++) {
                const bool inside = start + i < n;
                values.values[i] = inside ? x[start + i] : from_float(0.0f);
                if (ADD) added.values[i] = inside ? residual[start + i] : from_float(0.0f);
            }
        }
        for (int i = 0; i < SIZE; i += 4) {
            unsigned words[4];
            philox(seed, offset + static_cast<uint64_t>((start + i) / 4), words);
            for (int j = 0; j < 4; j++) {
                T& value = values.values[i + j];
                // __fmul_rn: the product must not join the sum in an fma
                const float scaled = __fmul_rn(to_float(value), scale);
                value = from_float(words[j] >= threshold ? scaled : 0.0f);
                if (ADD) value = from_float(to_float(added.values[i + j]) + to_float(value));
            }
        }
        if (whole) {
            store_pack(out + start, values);
        } else {
            for (int i = 0; i < SIZE; i++)
                if (start + i < n) out[start + i] = values.values[i];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dropout(const T* x, T* out, int64_t n, uint64_t seed, uint64_t offset, const uint64_t* state,
            uint64_t threshold, float scale) {
    drop<false>(x, nullptr, out, n, seed, offset, state, threshold, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dropout_add(const T* x, const T* residual, T* out, int64_t n, uint64_t seed, uint64_t offset,
                const uint64_t* state, uint64_t threshold, float scale) {
    drop<true>(x, residual, out, n, seed, offset, state, threshold, scale);
}
