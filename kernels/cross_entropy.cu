// Softmax and cross-entropy of rows of logits.
//
// logits (N, V) of T; target (N) of int32 or, if `wide`, int64; weight (V) float32, or null for
// ones; loss, top, total (N) float32. With z = x - max(x), total = sum(exp(z)), t the target, s the
// smoothing, and q_c = w_c ((c == t) (1 - s) + s / V):
//     loss = sum(q) log(total) - sum(q z),    gradient of x_c = exp(z_c) / total sum(q) - q_c
// times upstream[row * upstream_step], or `factor` if upstream is null, / *divisor unless null.
// 0 times -inf is 0 in the sum of q z. A target equal to `ignored` gives 0 and 0, one outside of
// [0, V) NaN. A team per row (see softmax.cuh); arithmetic in float32.
//
// forward: saves top = max(x) and total, kept apart, because in top + log(total) a huge top would
// swallow the logarithm. Bytes: N V sizeof(T).  FLOPs: 5 N V.
// backward: the gradient to out.  Bytes: 2 N V sizeof(T).  FLOPs: 5 N V.
// in place: the loss, and the gradient in the place of the logits. The row waits in shared memory
// (`room` Packs for each row) between the passes, or is read again if room is 0.
// Bytes: 2 N V sizeof(T) (3 N V if read again).  FLOPs: 10 N V.
#include "ids.cuh"
#include "softmax.cuh"

// What q is in one row: `hit` at `id` and `even` * weight everywhere, `mass` in all.
struct Label {
    int id;  // -1: ignored
    float hit, even, mass;
};

__device__ __forceinline__ Label label_of(int64_t id, const float* weight,
                                          const float* weight_total, int columns, int64_t ignored,
                                          float smoothing) {
    const float even = smoothing / columns;
    if (id == ignored) return {-1, 0.0f, 0.0f, 0.0f};
    if (id < 0 || id >= columns) return {columns, 0.0f, even, value_nan()};
    const float hit = (1.0f - smoothing) * (weight ? weight[id] : 1.0f);
    const float spread = smoothing == 0.0f ? 0.0f : even * (weight ? *weight_total : columns);
    return {static_cast<int>(id), hit, even, hit + spread};
}

__device__ __forceinline__ float upstream_of(const float* upstream, int64_t upstream_step,
                                             float factor, const float* divisor, int64_t row) {
    const float g = upstream ? upstream[row * upstream_step] : factor;
    return divisor ? g / *divisor : g;
}

// This thread's part of the sum of w (x - top); what has no weight may be -inf.
__device__ __forceinline__ float spread_cost(const T* x, const Packs& packs, const Row& row,
                                             const float* weight, float top) {
    float cost = 0.0f;
    const auto add = [&](int col, float value) {
        const float w = weight ? weight[col] : 1.0f;
        if (w != 0.0f) cost += w * (value - top);
    };
    each_loose(row, [&](int col) { add(col, to_float(x[col])); });
    each_pack<1>(row, packs, [&](int i, const Pack& pack) {
#pragma unroll
        for (int k = 0; k < Pack::size; k++) add(row.column(i) + k, to_float(pack.values[k]));
    });
    return cost;
}

// `chosen` is the target's logit, `spread` the sum of w (x - top).
__device__ __forceinline__ float loss_of(const Label& label, Running all, float chosen,
                                         float spread) {
    float cost = label.hit == 0.0f ? 0.0f : label.hit * (chosen - all.top);
    if (label.even != 0.0f) cost += label.even * spread;
    return label.mass * logf(all.sum) - cost;
}

__device__ __forceinline__ void write_zeros(T* y, const Row& row) {
    float zeros[Pack::size] = {};
    each_loose(row, [&](int col) { y[col] = from_float(0.0f); });
    for (int i = threadIdx.x; i < row.packs; i += blockDim.x)
        store_pack(y + row.column(i), narrow(zeros));
}

__device__ __forceinline__ void write_gradient(const T* x, const Packs& packs, T* y, const Row& row,
                                               const Label& label, const float* weight, Running all,
                                               float g) {
    const float scale = g * label.mass / all.sum, hit = g * label.hit, even = g * label.even;
    each_loose(row, [&](int col) {
        float d = scale * power(to_float(x[col]) - all.top);
        if (label.even != 0.0f) d -= even * (weight ? weight[col] : 1.0f);
        if (col == label.id) d -= hit;
        y[col] = from_float(d);
    });
    const auto write = [&](int i, const Pack& pack, bool smoothed) {
        const int col = row.column(i);
        float d[Pack::size];
        widen(d, pack);
#pragma unroll
        for (int k = 0; k < Pack::size; k++) d[k] = scale * power(d[k] - all.top);
        if (smoothed) {
#pragma unroll
            for (int k = 0; k < Pack::size; k++) d[k] -= even * (weight ? weight[col + k] : 1.0f);
        }
        if (static_cast<unsigned>(label.id - col) < Pack::size) {
#pragma unroll
            for (int k = 0; k < Pack::size; k++)
                if (col + k == label.id) d[k] -= hit;
        }
        store_pack(y + col, narrow(d));
    };
    if (label.even != 0.0f)
        each_pack<1>(row, packs, [&](int i, const Pack& pack) { write(i, pack, true); });
    else
        each_pack<4>(row, packs, [&](int i, const Pack& pack) { write(i, pack, false); });
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    cross_entropy_forward(const T* logits, const void* target, bool wide, const float* weight,
                          const float* weight_total, float* loss, float* top, float* total,
                          int64_t rows, int columns, int64_t ignored, float smoothing) {
    __shared__ float scratch[3][WARP];
    const int64_t row = team_row();
    if (row >= rows) return;
    const Label label =
        label_of(id_at(target, wide, row), weight, weight_total, columns, ignored, smoothing);
    if (label.id < 0) {
        if (threadIdx.x == 0) loss[row] = 0.0f, top[row] = 0.0f, total[row] = 1.0f;
        return;
    }
    const T* x = logits + row * columns;
    const Row parts = split(columns, x, x);
    const Running all = team_total(read_row(x, parts, nullptr), scratch);
    float spread = 0.0f;
    if (label.even != 0.0f)
        spread = team_sum(spread_cost(x, {x, nullptr}, parts, weight, all.top), scratch[2]);
    if (threadIdx.x == 0) {
        const float chosen = label.id < columns ? to_float(x[label.id]) : 0.0f;
        loss[row] = loss_of(label, all, chosen, spread);
        top[row] = all.top;
        total[row] = all.sum;
    }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    cross_entropy_backward(const T* logits, const void* target, bool wide, const float* weight,
                           const float* weight_total, const float* top, const float* total,
                           const float* upstream, int64_t upstream_step, const float* divisor,
                           T* out, int64_t rows, int columns, int64_t ignored, float smoothing) {
    const int64_t row = team_row();
    if (row >= rows) return;
    const T* x = logits + row * columns;
    T* y = out + row * columns;
    const Row parts = split(columns, x, y);
    const Label label =
        label_of(id_at(target, wide, row), weight, weight_total, columns, ignored, smoothing);
    if (label.id < 0) {
        write_zeros(y, parts);
        return;
    }
    const float g = upstream_of(upstream, upstream_step, 1.0f, divisor, row);
    write_gradient(x, {x, nullptr}, y, parts, label, weight, {top[row], total[row]}, g);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    cross_entropy_in_place(T* logits, const void* target, bool wide, const float* weight,
                           const float* weight_total, const float* upstream, int64_t upstream_step,
                           float factor, const float* divisor, float* loss, int64_t rows,
                           int columns, int64_t ignored, float smoothing, int room) {
    __shared__ float scratch[3][WARP];
    DYN_SMEM(memory);
    const int64_t row = team_row();
    if (row >= rows) return;
    T* x = logits + row * columns;
    const Row parts = split(columns, x, x);
    const Label label =
        label_of(id_at(target, wide, row), weight, weight_total, columns, ignored, smoothing);
    if (label.id < 0) {
        write_zeros(x, parts);
        if (threadIdx.x == 0) loss[row] = 0.0f;
        return;
    }
    Pack* keep = room ? reinterpret_cast<Pack*>(memory) + threadIdx.y * room : nullptr;
    // read before team_total, a barrier: after it the logit may be overwritten by another thread
    const float chosen = label.id < columns ? to_float(x[label.id]) : 0.0f;
    const Running all = team_total(read_row(x, parts, keep), scratch);
    float spread = 0.0f;
    if (label.even != 0.0f)
        spread = team_sum(spread_cost(x, {x, keep}, parts, weight, all.top), scratch[2]);
    if (threadIdx.x == 0) loss[row] = loss_of(label, all, chosen, spread);
    const float g = upstream_of(upstream, upstream_step, factor, divisor, row);
    write_gradient(x, {x, keep}, x, parts, label, weight, all, g);
}

// ---- sums over the rows: one launch gives a part for each block, a second one adds them ----

constexpr int SUM_THREADS = 1024;

// parts[block] = the number of targets that count, or the sum of their weights.
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    cross_entropy_count(const void* target, bool wide, const float* weight, float* parts,
                        int64_t rows, int columns, int64_t ignored) {
    __shared__ float scratch[WARP];
    const int64_t step = static_cast<int64_t>(gridDim.x) * SUM_THREADS;
    float sum = 0.0f;
#pragma unroll 4
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * SUM_THREADS + threadIdx.x; i < rows;
         i += step) {
        const int64_t id = id_at(target, wide, i);
        if (id != ignored && id >= 0 && id < columns) sum += weight ? weight[id] : 1.0f;
    }
    sum = block_sum(sum, scratch, SUM_THREADS);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// parts[block] = the sum of some values, divided by *divisor if there is one.
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    cross_entropy_sum(const float* values, const float* divisor, float* parts, int64_t count) {
    __shared__ float scratch[WARP];
    const int64_t step = static_cast<int64_t>(gridDim.x) * SUM_THREADS;
    float sum = 0.0f;
#pragma unroll 4
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * SUM_THREADS + threadIdx.x; i < count;
         i += step)
        sum += values[i];
    sum = block_sum(sum, scratch, SUM_THREADS);
    if (threadIdx.x == 0) parts[blockIdx.x] = divisor ? sum / *divisor : sum;
}
