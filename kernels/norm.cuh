// What layer_norm.cu (CENTRED) and rms_norm.cu have in common; the latter leaves out the mean.
//
// Rows of C columns, of h = x or the rounded sum x + residual:
//     z = (h - mean(h)) * rstd,  rstd = 1 / sqrt(mean((h - mean(h))^2) + eps)
//     out = z * weight + bias
//     dh = (u - mean(u) - z * mean(u * z)) * rstd + g_h,  u = g * weight
//     dweight = sum over rows of g * z,  dbias = sum over rows of g
// norm_forward and norm_backward: a team of threads (rows.cuh) keeps a row in registers, VALUES
// columns per thread, all in packs. The mean comes before the squares of the centred values: no
// cancellation. In backward a block takes many rows, adds up its part of dweight and dbias in
// registers and writes it as one row of `partial`.
// norm_forward_any and norm_backward_any take rows of any length at any address, and read a row
// again (from the caches) instead of keeping it; norm_parameters_any makes `partial` beside it.
#pragma once

#include "rows.cuh"

constexpr int VALUES = 24, STEPS = VALUES / Pack::size;  // a warp takes the 768 columns of GPT-2
constexpr int THREADS = 384;  // at most in a block: 168 registers for each thread, no spills
constexpr int ANY_THREADS = 512, TILE_THREADS = 256;

using Part = Neighbours<T, Pack::size>;

template <int N>
__device__ __forceinline__ void widen(const Neighbours<T, N>& some, float (&to)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) to[j] = to_float(some.values[j]);
}

// out = z * weight + bias at N columns.
template <int N>
__device__ __forceinline__ void store_scaled(const T* weight, const T* bias, T* out, int col,
                                             const float (&z)[N]) {
    Neighbours<T, N> scale, shift, result;
    if (weight) scale = load<N>(weight + col);
    if (bias) shift = load<N>(bias + col);
#pragma unroll
    for (int j = 0; j < N; j++) {
        float y = z[j];
        if (weight) y *= to_float(scale.values[j]);
        if (bias) y += to_float(shift.values[j]);
        result.values[j] = from_float(y);
    }
    store<N>(out + col, result);
}

template <bool CENTRED>
__device__ __forceinline__ void norm_forward(const T* x, const T* residual, const T* weight,
                                             const T* bias, T* sum, T* out, float* mean,
                                             float* rstd, int64_t rows, int columns, int team,
                                             float eps) {
    constexpr int N = Pack::size;
    __shared__ float first_scratch[1][WARP], second_scratch[1][WARP];
    const int lane = threadIdx.x % team;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / team) + threadIdx.x / team;
    const int width = row < rows ? columns : 0;
    const int64_t start = row * columns;
    Part h[STEPS];
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int col = (i * team + lane) * N;
        if (col < width) h[i] = load<N>(x + start + col);
    }
    if (residual) {
        Part more[STEPS];  // read all before the first is stored
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int col = (i * team + lane) * N;
            if (col < width) more[i] = load<N>(residual + start + col);
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int col = (i * team + lane) * N;
            if (col < width) {
#pragma unroll
                for (int j = 0; j < N; j++) {
                    const float added = to_float(more[i].values[j]);
                    h[i].values[j] = from_float(to_float(h[i].values[j]) + added);
                }
                store<N>(sum + start + col, h[i]);
            }
        }
    }
    float values[STEPS][N];
    float total[1] = {}, squares[1] = {};
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if ((i * team + lane) * N < width) {
            widen(h[i], values[i]);
#pragma unroll
            for (int j = 0; j < N; j++) total[0] += values[i][j];
        }
    }
    float m = 0.0f;
    if (CENTRED) {
        team_sum(total, team, first_scratch);
        m = total[0] / columns;
    }
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if ((i * team + lane) * N < width) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                values[i][j] -= m;
                squares[0] += values[i][j] * values[i][j];
            }
        }
    }
    team_sum(squares, team, second_scratch);
    const float r = 1.0f / sqrtf(squares[0] / columns + eps);
    if (lane == 0 && row < rows) {
        if (CENTRED) mean[row] = m;
        rstd[row] = r;
    }
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int col = (i * team + lane) * N;
        if (col < width) {
#pragma unroll
            for (int j = 0; j < N; j++) values[i][j] *= r;
            store_scaled<N>(weight, bias, out + start, col, values[i]);
        }
    }
}

template <bool CENTRED, int N>
__device__ __forceinline__ void norm_forward_any(const T* x, const T* residual, const T* weight,
                                                 const T* bias, T* sum, T* out, float* mean,
                                                 float* rstd, int64_t rows, int columns, int team,
                                                 float eps) {
    __shared__ float first_scratch[1][WARP], second_scratch[1][WARP];
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / team) + threadIdx.x / team;
    const int width = row < rows ? columns : 0, stride = team * N;
    const int begin = threadIdx.x % team * N;
    const int64_t start = row * columns;
    const T* h = x + start;
    float total[1] = {}, squares[1] = {}, m = 0.0f;
    if (residual) {
        for (int col = begin; col < width; col += stride) {
            Neighbours<T, N> some = load<N>(h + col);
            const Neighbours<T, N> more = load<N>(residual + start + col);
#pragma unroll
            for (int j = 0; j < N; j++)
                some.values[j] = from_float(to_float(some.values[j]) + to_float(more.values[j]));
            store<N>(sum + start + col, some);
        }
        h = sum + start;  // a thread reads what it wrote itself
    }
    if (CENTRED) {
        for (int col = begin; col < width; col += stride) {
            float values[N];
            widen(load<N>(h + col), values);
#pragma unroll
            for (int j = 0; j < N; j++) total[0] += values[j];
        }
        team_sum(total, team, first_scratch);
        m = total[0] / columns;
    }
    for (int col = begin; col < width; col += stride) {
        float values[N];
        widen(load<N>(h + col), values);
#pragma unroll
        for (int j = 0; j < N; j++) squares[0] += (values[j] - m) * (values[j] - m);
    }
    team_sum(squares, team, second_scratch);
    const float r = 1.0f / sqrtf(squares[0] / columns + eps);
    if (begin == 0 && row < rows) {
        if (CENTRED) mean[row] = m;
        rstd[row] = r;
    }
    for (int col = begin; col < width; col += stride) {
        float values[N];
        widen(load<N>(h + col), values);
#pragma unroll
        for (int j = 0; j < N; j++) values[j] = (values[j] - m) * r;
        store_scaled<N>(weight, bias, out + start, col, values);
    }
}

// N columns of a row in backward.
template <bool CENTRED, int N>
struct Terms {
    float g[N], u[N], z[N];

    __device__ __forceinline__ Terms(const Neighbours<T, N>& upstream, const Neighbours<T, N>& h,
                                     float m, float r) {
        widen(upstream, g);
        widen(upstream, u);
        widen(h, z);
#pragma unroll
        for (int j = 0; j < N; j++) z[j] = (CENTRED ? z[j] - m : z[j]) * r;
    }

    __device__ __forceinline__ void scale(const Neighbours<T, N>& weight) {
#pragma unroll
        for (int j = 0; j < N; j++) u[j] *= to_float(weight.values[j]);
    }

    // sums of u * z and, if CENTRED, of u
    __device__ __forceinline__ void add_to(float (&sums)[1 + CENTRED]) const {
#pragma unroll
        for (int j = 0; j < N; j++) {
            sums[0] += u[j] * z[j];
            if (CENTRED) sums[CENTRED] += u[j];
        }
    }

    // the gradient of h: `d` plus what it was before
    __device__ __forceinline__ void gradient(const float (&means)[1 + CENTRED], float r,
                                             float (&d)[N]) const {
#pragma unroll
        for (int j = 0; j < N; j++) {
            float x = u[j] - z[j] * means[0];
            if (CENTRED) x -= means[CENTRED];
            d[j] += x * r;
        }
    }
};

template <int N>
__device__ __forceinline__ void store_narrow(T* to, const float (&x)[N]) {
    Neighbours<T, N> some;
#pragma unroll
    for (int j = 0; j < N; j++) some.values[j] = from_float(x[j]);
    store<N>(to, some);
}

// `partial` (gridDim.x, K C) float32 or null: dweight, if wanted, and dbias, if wanted.
template <bool CENTRED>
__device__ __forceinline__ void norm_backward(const T* g, const T* h, const T* g_h,
                                              const T* weight, const float* mean,
                                              const float* rstd, T* dh, float* partial,
                                              bool want_weight, bool want_bias, int64_t rows,
                                              int columns, int team) {
    constexpr int N = Pack::size;
    __shared__ float scratch[2][1 + CENTRED][WARP];  // in turn
    __shared__ float totals[WARP * VALUES];
    const int lane = threadIdx.x % team, teams = blockDim.x / team;
    float dweight[VALUES] = {}, dbias[VALUES] = {};
    int turn = 0;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < rows;
         first += static_cast<int64_t>(gridDim.x) * teams) {
        const int64_t row = first + threadIdx.x / team, start = row * columns;
        const int width = row < rows ? columns : 0;
        Part upstream[STEPS], centre[STEPS], added[STEPS];
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int col = (i * team + lane) * N;
            if (col < width) {
                upstream[i] = load<N>(g + start + col);
                centre[i] = load<N>(h + start + col);
                if (g_h) added[i] = load<N>(g_h + start + col);
            }
        }
        const float m = CENTRED && row < rows ? mean[row] : 0.0f;
        const float r = row < rows ? rstd[row] : 0.0f;
        float means[1 + CENTRED] = {};
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int col = (i * team + lane) * N;
            if (col < width) {
                Terms<CENTRED, N> t(upstream[i], centre[i], m, r);
                if (weight) t.scale(load<N>(weight + col));
                t.add_to(means);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    dweight[i * N + j] += t.g[j] * t.z[j];
                    if (CENTRED) dbias[i * N + j] += t.g[j];
                }
            }
        }
        if (!dh) continue;
        team_sum(means, team, scratch[turn]);
        turn = 1 - turn;
        for (int k = 0; k < 1 + CENTRED; k++) means[k] /= columns;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int col = (i * team + lane) * N;
            if (col < width) {
                Terms<CENTRED, N> t(upstream[i], centre[i], m, r);
                if (weight) t.scale(load<N>(weight + col));
                float d[N] = {};
                if (g_h) widen(added[i], d);
                t.gradient(means, r, d);
                store_narrow<N>(dh + start + col, d);
            }
        }
    }
    float* to = partial + static_cast<int64_t>(blockIdx.x) * (want_weight + want_bias) * columns;
    const auto write = [&](int col, float sum) { to[col] = sum; };
    if (want_weight) {
        write_sums<VALUES, N>(dweight, team, columns, totals, write);
        to += columns;
    }
    if (want_bias) write_sums<VALUES, N>(dbias, team, columns, totals, write);
}

template <bool CENTRED, int N>
__device__ __forceinline__ void norm_backward_any(const T* g, const T* h, const T* g_h,
                                                  const T* weight, const float* mean,
                                                  const float* rstd, T* dh, int64_t rows,
                                                  int columns, int team) {
    __shared__ float scratch[1 + CENTRED][WARP];
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / team) + threadIdx.x / team;
    const int width = row < rows ? columns : 0, stride = team * N;
    const int begin = threadIdx.x % team * N;
    const int64_t start = row * columns;
    const float m = CENTRED && row < rows ? mean[row] : 0.0f, r = row < rows ? rstd[row] : 0.0f;
    float means[1 + CENTRED] = {};
    for (int col = begin; col < width; col += stride) {
        Terms<CENTRED, N> t(load<N>(g + start + col), load<N>(h + start + col), m, r);
        if (weight) t.scale(load<N>(weight + col));
        t.add_to(means);
    }
    team_sum(means, team, scratch);
    for (int k = 0; k < 1 + CENTRED; k++) means[k] /= columns;
    for (int col = begin; col < width; col += stride) {
        Terms<CENTRED, N> t(load<N>(g + start + col), load<N>(h + start + col), m, r);
        if (weight) t.scale(load<N>(weight + col));
        float d[N] = {};
        if (g_h) widen(load<N>(g_h + start + col), d);
        t.gradient(means, r, d);
        store_narrow<N>(dh + start + col, d);
    }
}

// `partial` (gridDim.y, K C) as in norm_backward. A block takes a tile of columns of a stripe of
// rows, a team a row of the tile.
template <bool CENTRED, int N>
__device__ __forceinline__ void norm_parameters_any(const T* g, const T* h, const float* mean,
                                                    const float* rstd, float* partial,
                                                    bool want_weight, bool want_bias, int64_t rows,
                                                    int columns, int team) {
    constexpr int SIZE = Pack::size;
    __shared__ float totals[WARP * SIZE];
    float dweight[SIZE] = {}, dbias[SIZE] = {};
    const auto add = [&](int64_t row, int col, int i) {
        const int64_t at = row * columns + col;
        const Terms<CENTRED, N> t(load<N>(g + at), load<N>(h + at), CENTRED ? mean[row] : 0.0f,
                                  rstd[row]);
#pragma unroll
        for (int j = 0; j < N; j++) {
            dweight[i + j] += t.g[j] * t.z[j];
            if (CENTRED) dbias[i + j] += t.g[j];
        }
    };
    const Tile tile = for_stripe<SIZE, N, 2>(rows, columns, team, add);
    const int64_t kinds = want_weight + want_bias;
    float* to = partial + blockIdx.y * kinds * columns + tile.first;
    const auto write = [&](int col, float sum) { to[col] = sum; };
    if (want_weight) {
        write_sums<SIZE, N>(dweight, team, tile.width, totals, write);
        to += columns;
    }
    if (want_bias) write_sums<SIZE, N>(dbias, team, tile.width, totals, write);
}
