// Copies between arrays of any layout: what reshape, concatenate and assignments to a part need
// where no view will do.
#include "common.cuh"

// copy_strided: x and out of shape (n0, ..., n5), element (i0, ..., i5) at the sum of i times
// stride, in elements; a stride of x may be 0 (broadcast). One thread copies one element per turn;
// the last axis is the fastest, so neighbours in out are written together where its stride is 1.
//
// Precision: bits are copied, E is an unsigned integer of GPUGRAD_BYTES (1, 2, 4, 8).
// Bytes: 2 GPUGRAD_BYTES n.  FLOPs: 0.
#ifndef GPUGRAD_BYTES
#define GPUGRAD_BYTES 4
#endif
#if GPUGRAD_BYTES == 1
using E = uint8_t;
#elif GPUGRAD_BYTES == 2
using E = uint16_t;
#elif GPUGRAD_BYTES == 4
using E = uint32_t;
#else
using E = uint64_t;
#endif

extern "C" __global__ void __launch_bounds__(256)
    copy_strided(const E* x, E* out, int64_t n, int64_t n1, int64_t n2, int64_t n3, int64_t n4,
                 int64_t n5, int64_t x0, int64_t x1, int64_t x2, int64_t x3, int64_t x4, int64_t x5,
                 int64_t y0, int64_t y1, int64_t y2, int64_t y3, int64_t y4, int64_t y5) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        int64_t rest = i;
        const int64_t i5 = rest % n5;
        rest /= n5;
        const int64_t i4 = rest % n4;
        rest /= n4;
        const int64_t i3 = rest % n3;
        rest /= n3;
        const int64_t i2 = rest % n2;
        rest /= n2;
        const int64_t i1 = rest % n1;
        const int64_t i0 = rest / n1;
        out[i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3 + i4 * y4 + i5 * y5] =
            x[i0 * x0 + i1 * x1 + i2 * x2 + i3 * x3 + i4 * x4 + i5 * x5];
    }
}
