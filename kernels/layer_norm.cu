// Layer normalisation, optionally of a residual sum.
//
// x, residual, out, sum (N, C) of T; weight, bias (C) of T; mean, rstd (N) float32.
// One block per row: sum = x + residual (if given), out = (sum - mean) * rstd * weight +
// bias. The row is read once, kept in registers for the second pass (the squares of the centred
// values: no cancellation), so C <= threads * PER_THREAD. Saves mean and rstd.
// Bytes: 2 N C sizeof(T), with a residual 4 N C sizeof(T).  FLOPs: 8 N C.
#include "common.cuh"

#ifndef THREADS
#define THREADS 256
#endif
#ifndef PER_THREAD
#define PER_THREAD 8
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_forward(const T* x, const T* residual, const T* weight, const T* bias, T* sum,
                       T* out, float* mean, float* rstd, int columns, float eps) {
    __shared__ float scratch[WARP];
    const int64_t row = blockIdx.x;
    const int64_t start = row * columns;
    float values[PER_THREAD];
    float total = 0.0f;
    for (int i = 0; i < PER_THREAD; i++) {
        const int col = threadIdx.x + i * THREADS;
        values[i] = 0.0f;
        if (col < columns) {
            values[i] = to_float(x[start + col]);
            if (residual) {
                const T added = from_float(values[i] + to_float(residual[start + col]));
                sum[start + col] = added;
                values[i] = to_float(added);
            }
            total += values[i];
        }
    }
    const float m = block_sum(total, scratch, THREADS) / columns;
    float squares = 0.0f;
    for (int i = 0; i < PER_THREAD; i++) {
        const int col = threadIdx.x + i * THREADS;
        if (col < columns) squares += (values[i] - m) * (values[i] - m);
    }
    const float r = rsqrtf(block_sum(squares, scratch, THREADS) / columns + eps);
    for (int i = 0; i < PER_THREAD; i++) {
        const int col = threadIdx.x + i * THREADS;
        if (col < columns) {
            float y = (values[i] - m) * r;
            if (weight) y *= to_float(weight[col]);
            if (bias) y += to_float(bias[col]);
            out[start + col] = from_float(y);
        }
    }
    if (threadIdx.x == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
}
