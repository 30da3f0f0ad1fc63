// Layer normalisation, optionally of a residual sum, and its gradients; norm.cuh says how.
//
// x, residual, sum, out, g, h, g_h, dh (N, C) of T; weight, bias (C) of T; mean, rstd (N) float32;
// partial (S, K C) float32. residual with sum, weight, bias, g_h, dh and partial may be null.
// layer_norm_forward: a team of threads per row, one read. Writes h = x + residual to `sum` if
// there is a residual. Saves mean and rstd.
// layer_norm_backward: the same teams, S blocks, each taking many rows. dh contains g_h, the
// gradient of `sum`; partial the sums of g * z and of g over the rows of a block, K of the two;
// column_sums.cu adds up its S rows.
// layer_norm_forward_any, layer_norm_backward_any (dh), layer_norm_parameters_any (partial): the
// same for rows that fit neither packs nor registers.
// Bytes: forward 2 N C sizeof(T), with a residual 4 N C sizeof(T); backward 3 N C sizeof(T), with
// g_h 4 N C sizeof(T), and 8 K S C.  FLOPs: forward 8 N C, backward 14 N C.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_forward(const T* x, const T* residual, const T* weight, const T* bias, T* sum,
                       T* out, float* mean, float* rstd, int64_t rows, int columns, int team,
                       float eps) {
    norm_forward<true>(x, residual, weight, bias, sum, out, mean, rstd, rows, columns, team, eps);
}

extern "C" __global__ void __launch_bounds__(ANY_THREADS, 2)
    layer_norm_forward_any(const T* x, const T* residual, const T* weight, const T* bias, T* sum,
                           T* out, float* mean, float* rstd, int64_t rows, int columns, int team,
                           float eps) {
    if (rows_aligned(columns, x, residual, weight, bias, sum, out)) {
        norm_forward_any<true, Pack::size>(x, residual, weight, bias, sum, out, mean, rstd, rows,
                                           columns, team, eps);
    } else {
        norm_forward_any<true, 1>(x, residual, weight, bias, sum, out, mean, rstd, rows, columns,
                                  team, eps);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_backward(const T* g, const T* h, const T* g_h, const T* weight, const float* mean,
                        const float* rstd, T* dh, float* partial, bool want_weight, bool want_bias,
                        int64_t rows, int columns, int team) {
    norm_backward<true>(g, h, g_h, weight, mean, rstd, dh, partial, want_weight, want_bias, rows,
                        columns, team);
}

extern "C" __global__ void __launch_bounds__(ANY_THREADS, 2)
    layer_norm_backward_any(const T* g, const T* h, const T* g_h, const T* weight,
                            const float* mean, const float* rstd, T* dh, int64_t rows, int columns,
                            int team) {
    if (rows_aligned(columns, g, h, g_h, weight, dh)) {
        norm_backward_any<true, Pack::size>(g, h, g_h, weight, mean, rstd, dh, rows, columns, team);
    } else {
        norm_backward_any<true, 1>(g, h, g_h, weight, mean, rstd, dh, rows, columns, team);
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
    layer_norm_parameters_any(const T* g, const T* h, const float* mean, const float* rstd,
                              float* partial, bool want_weight, bool want_bias, int64_t rows,
                              int columns, int team) {
    if (rows_aligned(columns, g, h)) {
        norm_parameters_any<true, Pack::size>(g, h, mean, rstd, partial, want_weight, want_bias,
                                              rows, columns, team);
    } else {
        norm_parameters_any<true, 1>(g, h, mean, rstd, partial, want_weight, want_bias, rows,
                                     columns, team);
    }
}
