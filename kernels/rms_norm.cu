// Root-mean-square normalisation, optionally of a residual sum, and its gradients; norm.cuh says
// how.
//
// x, residual, sum, out, g, h, g_h, dh (N, C) of T; weight (C) of T; rstd (N) float32; partial
// (S, C) float32. residual with sum, weight, g_h, dh and partial may be null.
// rms_norm_forward: a team of threads per row, one read. Writes h = x + residual to `sum` if there
// is a residual. Saves rstd = 1 / sqrt(mean(h * h) + eps).
// rms_norm_backward: the same teams, S blocks, each taking many rows. dh contains g_h, the gradient
// of `sum`; partial the sums of g * z over the rows of a block; column_sums.cu adds up its S rows.
// rms_norm_forward_any, rms_norm_backward_any (dh), rms_norm_parameters_any (partial): the same for
// rows that fit neither packs nor registers.
// Bytes: forward 2 N C sizeof(T), with a residual 4 N C sizeof(T); backward 3 N C sizeof(T), with
// g_h 4 N C sizeof(T), and 8 S C.  FLOPs: forward 4 N C, backward 10 N C.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_forward(const T* x, const T* residual, const T* weight, T* sum, T* out, float* rstd,
                     int64_t rows, int columns, int team, float eps) {
    norm_forward<false>(x, residual, weight, nullptr, sum, out, nullptr, rstd, rows, columns, team,
                        eps);
}

extern "C" __global__ void __launch_bounds__(ANY_THREADS, 2)
    rms_norm_forward_any(const T* x, const T* residual, const T* weight, T* sum, T* out,
                         float* rstd, int64_t rows, int columns, int team, float eps) {
    if (rows_aligned(columns, x, residual, weight, sum, out)) {
        norm_forward_any<false, Pack::size>(x, residual, weight, nullptr, sum, out, nullptr, rstd,
                                            rows, columns, team, eps);
    } else {
        norm_forward_any<false, 1>(x, residual, weight, nullptr, sum, out, nullptr, rstd, rows,
                                   columns, team, eps);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_backward(const T* g, const T* h, const T* g_h, const T* weight, const float* rstd,
                      T* dh, float* partial, int64_t rows, int columns, int team) {
    norm_backward<false>(g, h, g_h, weight, nullptr, rstd, dh, partial, partial != nullptr, false,
                         rows, columns, team);
}

extern "C" __global__ void __launch_bounds__(ANY_THREADS, 2)
    rms_norm_backward_any(const T* g, const T* h, const T* g_h, const T* weight, const float* rstd,
                          T* dh, int64_t rows, int columns, int team) {
    if (rows_aligned(columns, g, h, g_h, weight, dh)) {
        norm_backward_any<false, Pack::size>(g, h, g_h, weight, nullptr, rstd, dh, rows, columns,
                                             team);
    } else {
        norm_backward_any<false, 1>(g, h, g_h, weight, nullptr, rstd, dh, rows, columns, team);
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
    rms_norm_parameters_any(const T* g, const T* h, const float* rstd, float* partial, int64_t rows,
                            int columns, int team) {
    if (rows_aligned(columns, g, h)) {
        norm_parameters_any<false, Pack::size>(g, h, nullptr, rstd, partial, true, false, rows,
                                               columns, team);
    } else {
        norm_parameters_any<false, 1>(g, h, nullptr, rstd, partial, true, false, rows, columns,
                                      team);
    }
}
