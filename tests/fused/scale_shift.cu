// out = x * scale + shift, x (N, C) of T, shift (C); and the columns' sums of g.
#include "common.cuh"

extern "C" __global__ void scale_shift_forward(const T* x, const T* shift, T* out, int n,
                                               int columns, float scale) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float(to_float(x[i]) * scale + to_float(shift[i % columns]));
}

// One block; dx = g * scale, dshift = column sums of g through shared memory.
extern "C" __global__ void scale_shift_backward(const T* g, T* dx, T* dshift, int rows, int columns,
                                                float scale) {
    __shared__ float sums[256];
    for (int i = threadIdx.x; i < rows * columns; i += blockDim.x)
        dx[i] = from_float(to_float(g[i]) * scale);
    float sum = 0.0f;
    const int col = threadIdx.x % columns, step = blockDim.x / columns;
    for (int row = threadIdx.x / columns; row < rows && threadIdx.x < columns * step; row += step)
        sum += to_float(g[row * columns + col]);
    sums[threadIdx.x] = sum;
#ifndef RACE
    __syncthreads();
#endif
    if (threadIdx.x < columns) {
        float total = 0.0f;
        for (int i = 0; i < step; i++) total += sums[threadIdx.x + i * columns];
        dshift[threadIdx.x] = from_float(total);
    }
}
