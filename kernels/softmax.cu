// Softmax and log-softmax along one axis.
//
// x, out, g, dx of T; top, total float32, one per line, saved by forward: the maximum of x and the
// sum of exp(x - top); 0 and 1 where all of a line is -inf. With p = exp(x - top) / total:
//     softmax p,                        dx = p (g - sum(g p))
//     log-softmax x - top - log(total), dx = g - p sum(g)
// Backward computes p again: exact in float32, and out need not be kept. Arithmetic in float32.
//
// softmax_forward, softmax_backward: rows (N, C), a team per row (see softmax.cuh). What is read
// twice waits in shared memory (`room` Packs for each such row; 0: it is read again).
// softmax_lines_forward, softmax_lines_backward: (outer, n, inner) along n, lines = outer * inner.
// A block works on 32 lines, neighbours in memory, each cut into PARTS; a line is read twice.
// Bytes: forward 2 N C sizeof(T), backward 3 N C sizeof(T); of lines 3 and 5, less what the cache
// still has.  FLOPs: forward 10 N C, backward 12 N C.
#include "softmax.cuh"

struct Line {  // what the elements of a line are computed with
    float top, scale, rest;
    bool logarithm;
    __device__ __forceinline__ Line(Running all, bool logarithm)
        : top(all.top), scale(1.0f / all.sum), rest(logf(all.sum)), logarithm(logarithm) {}
    __device__ __forceinline__ float p(float x) const { return power(x - top) * scale; }
    __device__ __forceinline__ float result(float x) const {
        return logarithm ? x - top - rest : p(x);
    }
    // What is summed for the gradient, and the gradient.
    __device__ __forceinline__ float term(float x, float g) const {
        return logarithm ? g : g * p(x);
    }
    __device__ __forceinline__ float gradient(float x, float g, float sum) const {
        return logarithm ? g - p(x) * sum : p(x) * (g - sum);
    }
};

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    softmax_forward(const T* x, T* out, float* top, float* total, int64_t rows, int columns,
                    bool logarithm, int room) {
    __shared__ float scratch[2][WARP];
    DYN_SMEM(memory);
    const int64_t row = team_row();
    if (row >= rows) return;
    x += row * columns;
    out += row * columns;
    Pack* keep = room ? reinterpret_cast<Pack*>(memory) + threadIdx.y * room : nullptr;
    const Row parts = split(columns, x, out);
    const Running all = team_total(read_row(x, parts, keep), scratch);
    if (threadIdx.x == 0) {
        top[row] = all.top;
        total[row] = all.sum;
    }
    const Line line(all, logarithm);
    each_loose(parts, [&](int col) { out[col] = from_float(line.result(to_float(x[col]))); });
    each_pack<4>(parts, {x, keep}, [&](int i, const Pack& pack) {
        float y[Pack::size];
        widen(y, pack);
#pragma unroll
        for (int k = 0; k < Pack::size; k++) y[k] = line.result(y[k]);
        store_pack(out + parts.column(i), narrow(y));
    });
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
    softmax_backward(const T* x, const T* g, const float* top, const float* total, T* dx,
                     int64_t rows, int columns, bool logarithm, int room) {
    __shared__ float scratch[WARP];
    DYN_SMEM(memory);
    const int64_t row = team_row();
    if (row >= rows) return;
    x += row * columns;
    g += row * columns;
    dx += row * columns;
    // g is read twice, x too unless the sum is of g alone
    Pack* keep_g = room ? reinterpret_cast<Pack*>(memory) + threadIdx.y * (logarithm ? 1 : 2) * room
                        : nullptr;
    Pack* keep_x = room && !logarithm ? keep_g + room : nullptr;
    Row parts = split(columns, x, g);
    if (split(columns, x, dx).packs != parts.packs) parts = {0, 0, columns};
    const Line line({top[row], total[row]}, logarithm);

    float sum = 0.0f;
    each_loose(parts, [&](int col) { sum += line.term(to_float(x[col]), to_float(g[col])); });
    if (logarithm) {
        each_pack<4>(parts, {g, nullptr}, [&](int i, const Pack& pack) {
            if (keep_g) keep_g[i] = pack;
            float u[Pack::size];
            widen(u, pack);
#pragma unroll
            for (int k = 0; k < Pack::size; k++) sum += u[k];
        });
    } else {
        each_pair<2>(parts, {x, nullptr}, {g, nullptr}, [&](int i, const Pack& a, const Pack& b) {
            if (keep_g) keep_x[i] = a, keep_g[i] = b;
            float y[Pack::size], u[Pack::size];
            widen(y, a);
            widen(u, b);
#pragma unroll
            for (int k = 0; k < Pack::size; k++) sum += u[k] * line.p(y[k]);
        });
    }
    sum = team_sum(sum, scratch);
    each_loose(parts, [&](int col) {
        dx[col] = from_float(line.gradient(to_float(x[col]), to_float(g[col]), sum));
    });
    each_pair<2>(parts, {x, keep_x}, {g, keep_g}, [&](int i, const Pack& a, const Pack& b) {
        float y[Pack::size], u[Pack::size];
        widen(y, a);
        widen(u, b);
#pragma unroll
        for (int k = 0; k < Pack::size; k++) y[k] = line.gradient(y[k], u[k], sum);
        store_pack(dx + parts.column(i), narrow(y));
    });
}

// ---- lines whose elements are `inner` apart ----

constexpr int PARTS = 8, AHEAD = 4;

// A thread's share of a line: load(k, offset) and then use(k, offset) for AHEAD elements at a time.
struct Walk {
    int64_t line, first, step;  // element i of the line is at first + i * step
    int n;
    bool valid;
    __device__ __forceinline__ Walk(int64_t lines, int n, int64_t inner)
        : line(static_cast<int64_t>(blockIdx.x) * WARP + threadIdx.x),
          first(line / inner * inner * n + line % inner),
          step(inner),
          n(n),
          valid(line < lines) {}
    template <class Load, class Use>
    __device__ __forceinline__ void each(Load load, Use use) const {
        if (!valid) return;
        for (int64_t i = threadIdx.y; i < n; i += PARTS * AHEAD) {
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (i + k * PARTS < n) load(k, first + (i + k * PARTS) * step);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (i + k * PARTS < n) use(k, first + (i + k * PARTS) * step);
        }
    }
};

extern "C" __global__ void __launch_bounds__(PARTS * WARP)
    softmax_lines_forward(const T* x, T* out, float* top, float* total, int64_t lines, int n,
                          int64_t inner, bool logarithm) {
    __shared__ float tops[PARTS][WARP], sums[PARTS][WARP];
    const int part = threadIdx.y, lane = threadIdx.x;
    const Walk walk(lines, n, inner);
    float values[AHEAD];
    const auto load = [&](int k, int64_t at) { values[k] = to_float(x[at]); };
    Running mine = {-INF, 0.0f};
    walk.each(load, [&](int k, int64_t at) { mine.add({values[k]}); });
    tops[part][lane] = mine.top;
    sums[part][lane] = mine.sum;
    __syncthreads();
    Running all = {-INF, 0.0f};
    for (int i = 0; i < PARTS; i++) all.top = fmaxf(all.top, tops[i][lane]);
    for (int i = 0; i < PARTS; i++) {
        const Running other = {tops[i][lane], sums[i][lane]};
        all.sum += other.sum * other.rescale(all.top);
    }
    all = all.usable();
    if (walk.valid && part == 0) {
        top[walk.line] = all.top;
        total[walk.line] = all.sum;
    }
    const Line line(all, logarithm);
    walk.each(load, [&](int k, int64_t at) { out[at] = from_float(line.result(values[k])); });
}

extern "C" __global__ void __launch_bounds__(PARTS * WARP)
    softmax_lines_backward(const T* x, const T* g, const float* top, const float* total, T* dx,
                           int64_t lines, int n, int64_t inner, bool logarithm) {
    __shared__ float sums[PARTS][WARP];
    const int part = threadIdx.y, lane = threadIdx.x;
    const Walk walk(lines, n, inner);
    const Running all = {walk.valid ? top[walk.line] : 0.0f, walk.valid ? total[walk.line] : 1.0f};
    const Line line(all, logarithm);
    float values[AHEAD] = {}, upstream[AHEAD];
    bool both = !logarithm;  // its sum is of g alone
    const auto load = [&](int k, int64_t at) {
        if (both) values[k] = to_float(x[at]);
        upstream[k] = to_float(g[at]);
    };
    float sum = 0.0f;
    walk.each(load, [&](int k, int64_t at) { sum += line.term(values[k], upstream[k]); });
    sums[part][lane] = sum;
    __syncthreads();
    both = true;
    sum = 0.0f;
    for (int i = 0; i < PARTS; i++) sum += sums[i][lane];
    walk.each(load, [&](int k, int64_t at) {
        dx[at] = from_float(line.gradient(values[k], upstream[k], sum));
    });
}
