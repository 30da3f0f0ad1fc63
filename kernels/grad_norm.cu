// The norm of many gradients together, clipping by it, and what an optimiser's step does once.
//
// grad_norm_partial: one block per chunk of a gradient (chunks.cuh; only `g` counts) writes the sum
// of its squares. grad_norm_finish: one block adds those up, in one order whatever ran when, and
// writes the norm and the factor min(1, max_norm / (norm + 1e-6)), NaN if the norm is not finite;
// if it is, every tensor of the table that counts its steps has taken one more. Gradients of a loss
// that was scaled, against the underflow of float16, are divided by `scale`: so are norm and factor
// then, and the scale is adapted for the next loss. counts[0] are the steps since it last changed,
// counts[1] those with a norm that was not finite: these shrink it by `backoff`, `interval` others
// in a row let it grow by `growth`, as far as it stays a normal number of float32. With `estimates`,
// the mean and variance of log(norm), the factor is NaN for a spike as well: SpikeGuard
// (gpugrad/optim/spike_guard.py) has the formulas, and what `guarded` counts.
// grad_count_steps: one block counts the steps where nobody wants the norm. grad_scale: one block
// per chunk multiplies by the factor, unless it is 1 or NaN. Nothing has to come back to the host
// in between.
// Sums are float64: squares of float32 (1e-90 to 1e77) leave the range of float32, but none is lost
// here. The product with the factor is float64: 1e-40 has no accurate value in float32.
// Bytes: sizeof(G) per element for the norm, 2 sizeof(G) for scaling. FLOPs: 2 and 1 per element.
#include "chunks.cuh"

constexpr float SMALLEST_NORMAL = 1.17549435e-38f;
constexpr double LEAST_DEVIATION = 0.1;  // of log(norm)

__device__ __forceinline__ double warp_sum(double x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL, x, offset);
    return x;
}

// Sum over the block; thread 0 gets the result.
__device__ __forceinline__ double block_sum(double x, double* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    if (warp == 0) x = warp_sum(lane < THREADS / WARP ? scratch[lane] : 0.0);
    return x;
}

__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ void round_to(float& to, float x) { to = x; }
__device__ __forceinline__ void round_to(__nv_bfloat16& to, float x) { to = __float2bfloat16(x); }
__device__ __forceinline__ void round_to(__half& to, float x) { to = __float2half(x); }

// Calls f with the gradient as a pointer to its type, which is the same for the whole block.
template <typename F>
__device__ __forceinline__ void with_gradient(const Tensor& t, const F& f) {
    if (t.g_type == BFLOAT16) {
        f(static_cast<__nv_bfloat16*>(t.g));
    } else if (t.g_type == FLOAT16) {
        f(static_cast<__half*>(t.g));
    } else {
        f(static_cast<float*>(t.g));
    }
}

template <int W, typename G>
__device__ __forceinline__ double squares(const G* g, int from, int to) {
    double total = 0.0;
#pragma unroll 4
    for (int i = from + static_cast<int>(threadIdx.x) * W; i < to; i += THREADS * W) {
        const Vector<G, W> gs = load<W>(g + i);
        double part = 0.0;
#pragma unroll
        for (int k = 0; k < W; k++) {
            const double value = to_float(gs.values[k]);
            part += value * value;
        }
        total += part;
    }
    return total;
}

template <int W, typename G>
__device__ __forceinline__ void scale(G* g, int from, int to, double factor) {
#pragma unroll 4
    for (int i = from + static_cast<int>(threadIdx.x) * W; i < to; i += THREADS * W) {
        Vector<G, W> gs = load<W>(g + i);
#pragma unroll
        for (int k = 0; k < W; k++)
            round_to(gs.values[k], static_cast<float>(to_float(gs.values[k]) * factor));
        store(g + i, gs);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    grad_norm_partial(const Tensor* tensors, const Chunk* chunks, double* partials, int chunk) {
    __shared__ double scratch[THREADS / WARP];
    const Chunk c = chunks[blockIdx.x];
    const Tensor t = tensors[c.tensor];
    const int64_t start = chunk_start(c, chunk);
    const int count = chunk_length(t, start, chunk);
    double total = 0.0;
    with_gradient(t, [&](auto* g) {
        constexpr int W = 16 / sizeof(*g);
        g += start;
        const int end = aligned<W>(g) ? count / W * W : 0;
        total = squares<W>(g, 0, end) + squares<1>(g, end, count);
    });
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

__device__ __forceinline__ void take_step(const Tensor* tensors, int members) {
    for (int i = threadIdx.x; i < members; i += THREADS)
        if (tensors[i].step) *tensors[i].step += 1;
}

// Whether to take a step of this norm; counts it, and takes it into the estimates.
__device__ __forceinline__ bool judged(double norm, double* estimates, int32_t* guarded,
                                       double threshold, double least_share, int warmup) {
    if (!isfinite(norm)) {
        guarded[1] += 1;
        guarded[3] += 1;
        return false;
    }
    guarded[3] = 0;
    if (norm == 0.0) return true;
    const double mean = estimates[0], variance = estimates[1];
    const double deviation = sqrt(variance);
    const double limit = threshold * (deviation > LEAST_DEVIATION ? deviation : LEAST_DEVIATION);
    double change = log(norm) - mean;
    const bool ready = guarded[0] >= warmup, spike = ready && change > limit;
    if (ready) change = change > limit ? limit : change < -limit ? -limit : change;
    if (guarded[0] < 0x7fffffff) guarded[0] += 1;
    const double first_share = 1.0 / guarded[0];
    const double share = first_share > least_share ? first_share : least_share;
    estimates[0] = mean + share * change;
    estimates[1] = (1.0 - share) * (variance + share * change * change);
    guarded[2] += spike;
    return !spike;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    grad_norm_finish(const double* partials, int count, double max_norm, double* result,
                     const Tensor* tensors, int members, float* scale, int32_t* counts,
                     float growth, float backoff, int interval, double* estimates,
                     int32_t* guarded, double threshold, double least_share, int warmup) {
    __shared__ double scratch[THREADS / WARP];
    __shared__ int taken[1];
    double total = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) total += partials[i];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) {
        const double unit = scale ? *scale : 1.0;
        const double norm = sqrt(total) / unit;
        const double factor = max_norm / (norm + 1e-6);
        const bool finite = isfinite(norm);
        taken[0] = estimates ? judged(norm, estimates, guarded, threshold, least_share, warmup)
                             : finite;
        result[0] = norm;
        result[1] = taken[0] ? (factor < 1.0 ? factor : 1.0) / unit : value_nan();
        if (scale && !finite) {
            const float smaller = *scale * backoff;
            if (smaller >= SMALLEST_NORMAL) *scale = smaller;
            counts[0] = 0;
            counts[1] += 1;
        } else if (scale && ++counts[0] >= interval) {
            const float larger = *scale * growth;
            if (isfinite(larger)) *scale = larger;
            counts[0] = 0;
        }
    }
    __syncthreads();
    if (taken[0]) take_step(tensors, members);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    grad_count_steps(const Tensor* tensors, int members, const double* clip) {
    if (!isnan(factor_of(clip))) take_step(tensors, members);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    grad_scale(const Tensor* tensors, const Chunk* chunks, const double* result, int chunk) {
    const double factor = result[1];
    if (!(factor < 1.0)) return;
    const Chunk c = chunks[blockIdx.x];
    const Tensor t = tensors[c.tensor];
    const int64_t start = chunk_start(c, chunk);
    const int count = chunk_length(t, start, chunk);
    with_gradient(t, [&](auto* g) {
        constexpr int W = 16 / sizeof(*g);
        g += start;
        const int end = aligned<W>(g) ? count / W * W : 0;
        scale<W>(g, 0, end, factor);
        scale<1>(g, end, count, factor);
    });
}
