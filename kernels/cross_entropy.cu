// Softmax and cross-entropy in one pass over the logits.
//
// logits (N, V) of T, target (N) int64, loss, top, total, upstream (N) float32.
// forward: one block per row, online maximum and sum, one read. Saves the row's maximum `top` and
// `total` = sum(exp(x - top)); kept apart, because in top + log(total) a huge top would swallow the
// logarithm. loss = (top - x[target]) + log(total); with label smoothing s, (1 - s) of that and
// s * ((top - mean(x)) + log(total)). A target equal to ignored gives loss 0.
// backward: upstream[row] * (softmax - target distribution), written to out, which may be the
// logits themselves: one read, one write. A row with an ignored target gets 0.
// Bytes: forward N V sizeof(T), backward 2 N V sizeof(T).  FLOPs: about 5 N V each.
#include "common.cuh"

#ifndef THREADS
#define THREADS 256
#endif

struct Running {  // maximum, and sum of exp(x - maximum)
    float top;
    float sum;
};

__device__ __forceinline__ Running merge(Running a, Running b) {
    const float top = fmaxf(a.top, b.top);
    // of two parts of -inf only, -inf - -inf would be NaN; a NaN in a sum has to stay
    if (top == -INF) return {-INF, a.sum + b.sum};
    return {top, a.sum * expf(a.top - top) + b.sum * expf(b.top - top)};
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_forward(const T* logits, const int64_t* target, float* loss, float* top,
                          float* total, int columns, int64_t ignored, float smoothing) {
    __shared__ float tops[WARP];
    __shared__ float sums[WARP];
    __shared__ float scratch[WARP];
    const int64_t row = blockIdx.x;
    const T* x = logits + row * columns;
    Running mine = {-INF, 0.0f};
    float plain = 0.0f;
    bool nan = false;
    for (int col = threadIdx.x; col < columns; col += THREADS) {
        const float value = to_float(x[col]);
        nan |= value != value;  // fmaxf swallows NaN
        mine = merge(mine, {value, 1.0f});
        plain += value;
    }
    if (nan) mine.sum = value_nan();
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const float other_top = __shfl_xor_sync(FULL, mine.top, offset);
        const float other_sum = __shfl_xor_sync(FULL, mine.sum, offset);
        mine = merge(mine, {other_top, other_sum});
    }
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) {
        tops[warp] = mine.top;
        sums[warp] = mine.sum;
    }
    __syncthreads();
    Running all = {tops[0], sums[0]};
    for (int i = 1; i < THREADS / WARP; i++) all = merge(all, {tops[i], sums[i]});
    float spread = 0.0f;
    if (smoothing != 0.0f) spread = block_sum(plain, scratch, THREADS) / columns;
    if (threadIdx.x == 0) {
        const int64_t chosen = target[row];
        top[row] = all.top;
        total[row] = all.sum;
        float value = 0.0f;
        if (chosen != ignored) {
            const float rest = logf(all.sum);
            value = (all.top - to_float(x[chosen])) + rest;
            if (smoothing != 0.0f)
                value = (1.0f - smoothing) * value + smoothing * ((all.top - spread) + rest);
        }
        loss[row] = value;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_backward(const T* logits, const int64_t* target, const float* top,
                           const float* total, const float* upstream, T* out, int columns,
                           int64_t ignored, float smoothing) {
    const int64_t row = blockIdx.x;
    const T* x = logits + row * columns;
    T* y = out + row * columns;
    const int64_t chosen = target[row];
    const float g = upstream[row], largest = top[row], scale = 1.0f / total[row];
    const float share = smoothing / columns;
    for (int col = threadIdx.x; col < columns; col += THREADS) {
        float p = expf(to_float(x[col]) - largest) * scale - share;
        if (col == chosen) p -= 1.0f - smoothing;
        y[col] = from_float(chosen == ignored ? 0.0f : g * p);
    }
}
