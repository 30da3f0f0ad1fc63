// What an array holds, for gg.detect_anomaly: NaN, infinities, the range of the finite values.
//
// extremes: adds what it finds in x to six numbers at `found`, all zero where nothing was found:
//   0, 1, 2   how many elements are NaN, +infinity, -infinity
//   3         ~i for the smallest index i of one of these
//   4, 5      the smallest and the largest finite value: ~key(smallest), key(largest)
// where key maps doubles to integers of the same order. All six only ever grow, by atomics on
// integers, so the result does not depend on the order of the blocks. Each thread looks at every
// (gridDim.x * blockDim.x)-th element; the lanes of a warp agree before one of them writes.
//
// Precision: exact; float64 elements with GPUGRAD_DOUBLE, otherwise T.
// Bytes: sizeof(element) n.  FLOPs: 0.
#include "common.cuh"

#if defined(GPUGRAD_DOUBLE) && GPUGRAD_DOUBLE
using Element = double;
using Value = double;
__device__ __forceinline__ Value value_of(Element x) { return x; }
#else
using Element = T;
using Value = float;
__device__ __forceinline__ Value value_of(Element x) { return to_float(x); }
#endif

__device__ __forceinline__ uint64_t key(double x) {
    const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(x));
    return bits >> 63 ? ~bits : bits | (uint64_t(1) << 63);
}

template <typename X>
__device__ __forceinline__ X warp_least(X x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const X other = __shfl_xor_sync(FULL, x, offset);
        x = other < x ? other : x;
    }
    return x;
}

__device__ __forceinline__ int warp_count(int x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL, x, offset);
    return x;
}

extern "C" __global__ void __launch_bounds__(256)
    extremes(const Element* x, int64_t n, uint64_t* found) {
    int nans = 0, above = 0, below = 0;
    int64_t first = n;
    Value low = INF, high = INF;  // high is the smallest -x
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        const Value v = value_of(x[i]);
        if (isfinite(v)) {
            low = v < low ? v : low;
            high = -v < high ? -v : high;
            continue;
        }
        nans += v != v;
        above += v > 0;
        below += v < 0;
        first = i < first ? i : first;
    }
    low = warp_least(low);
    high = warp_least(high);
    nans = warp_count(nans);
    above = warp_count(above);
    below = warp_count(below);
    first = warp_least(first);
    if (threadIdx.x % WARP) return;
    if (nans) atomicAdd(found, uint64_t(nans));
    if (above) atomicAdd(found + 1, uint64_t(above));
    if (below) atomicAdd(found + 2, uint64_t(below));
    if (first < n) atomicMax(found + 3, ~uint64_t(first));
    if (isfinite(low)) {
        atomicMax(found + 4, ~key(low));
        atomicMax(found + 5, key(-high));
    }
}
