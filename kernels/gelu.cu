// The Gaussian error linear unit, alone and with a bias added first.
//
// x, out, g, dx (N, C) of T; bias, dbias (C) of T; partial (stripes, C) float32.
// out = h P(h) with h = x + bias (a float32 that is not rounded), dx = g (P(h) + h P'(h)), dbias =
// the column sums of dx before it is rounded. GELU_TANH chooses P: 0 the normal distribution, 1
// GPT-2's approximation by tanh. Nothing is saved but the inputs: P is cheaper to compute again
// than to write and read.
// gelu: a block takes THREADS * PACKS packs of 16 bytes in a row.
// bias_gelu: a block takes a tile of 32 packs of columns and a stripe of rows, WARPS rows at a
// time, so that a thread keeps its bias, and its sums, in registers. The sums of a block become a
// part of one row of `partial`; column_sums.cu adds the rows, in an order that only the sizes
// decide.
// Bytes: forward 2 N C sizeof(T), backward 3 N C sizeof(T), and 8 C per stripe.
// FLOPs: about 25 N C forward, 40 N C backward.
#include "gelu.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int PACKS = 2;  // of each operand, that a thread of gelu has under way
// Rows that a thread of bias_gelu has under way: more of them would take registers from the warps
// that wait for memory, or spill on sm_100a and sm_120a.
constexpr int FORWARD_ROWS = 3, BACKWARD_ROWS = 2;

extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_forward(const T* __restrict__ x, T* __restrict__ out, int64_t size) {
    const bool aligned = aligned16(x) && aligned16(out);
    const int64_t start =
        (static_cast<int64_t>(blockIdx.x) * THREADS * PACKS + threadIdx.x) * Pack::size;
    Pack packs[PACKS];
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const int64_t i = start + k * THREADS * Pack::size;
        packs[k] = load_part(x + i, size - i, aligned);
    }
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const int64_t i = start + k * THREADS * Pack::size;
#pragma unroll
        for (int e = 0; e < Pack::size; e++) {
            T& value = packs[k].values[e];
            value = from_float(gelu(to_float(value)));
        }
        store_part(out + i, packs[k], size - i, aligned);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_backward(const T* __restrict__ g, const T* __restrict__ x, T* __restrict__ dx,
                  int64_t size) {
    const bool aligned = aligned16(g) && aligned16(x) && aligned16(dx);
    const int64_t start =
        (static_cast<int64_t>(blockIdx.x) * THREADS * PACKS + threadIdx.x) * Pack::size;
    Pack packs[PACKS], upstream[PACKS];
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const int64_t i = start + k * THREADS * Pack::size;
        packs[k] = load_part(x + i, size - i, aligned);
        upstream[k] = load_part(g + i, size - i, aligned);
    }
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const int64_t i = start + k * THREADS * Pack::size;
#pragma unroll
        for (int e = 0; e < Pack::size; e++) {
            T& value = packs[k].values[e];
            value = from_float(to_float(upstream[k].values[e]) * derivative(to_float(value)));
        }
        store_part(dx + i, packs[k], size - i, aligned);
    }
}

// Where a thread of bias_gelu works: neighbouring columns from `col`, of which `count` exist (at
// most a pack is used), in `rows` rows of stripe `index`, the first at element `start` and each of
// the others `step` elements further.
struct Stripe {
    int64_t index, start, step;
    int col, count, rows;
    __device__ __forceinline__ Stripe(int64_t all_rows, int columns, int height) {
        constexpr int WIDTH = WARP * Pack::size;
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        const unsigned tiles = (static_cast<unsigned>(columns) + WIDTH - 1) / WIDTH;
        index = blockIdx.x / tiles;
        col = static_cast<int>(blockIdx.x % tiles) * WIDTH + lane * Pack::size;
        count = columns - col;
        const int64_t row = index * height + warp;
        const int existing = static_cast<int>(min(all_rows - index * height, int64_t{height}));
        rows = count > 0 ? (existing - warp + WARPS - 1) / WARPS : 0;
        start = row * columns + col;
        step = static_cast<int64_t>(WARPS) * columns;
    }
};

// PACKED: every row of the stripe holds a whole pack at an address for it. Otherwise one row after
// the other, element by element.
template <bool PACKED>
__device__ __forceinline__ void forward_stripe(const T* x, const T* bias, T* out,
                                               const Stripe& stripe) {
    constexpr int STEP = PACKED ? FORWARD_ROWS : 1;
    const Pack shift = load_part(bias + stripe.col, stripe.count, PACKED);
    int64_t at = stripe.start;
#pragma unroll 1
    for (int row = 0; row < stripe.rows; row += STEP, at += STEP * stripe.step) {
        Pack packs[STEP];
#pragma unroll
        for (int k = 0; k < STEP; k++)
            if (row + k < stripe.rows)
                packs[k] = load_part(x + at + k * stripe.step, stripe.count, PACKED);
#pragma unroll
        for (int k = 0; k < STEP; k++) {
#pragma unroll
            for (int e = 0; e < Pack::size; e++) {
                T& value = packs[k].values[e];
                value = from_float(gelu(to_float(value) + to_float(shift.values[e])));
            }
            if (row + k < stripe.rows)
                store_part(out + at + k * stripe.step, packs[k], stripe.count, PACKED);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    bias_gelu_forward(const T* __restrict__ x, const T* __restrict__ bias, T* __restrict__ out,
                      int64_t rows, int columns, int height) {
    const Stripe stripe(rows, columns, height);
    if (stripe.rows <= 0) return;
    if (columns % Pack::size == 0 && aligned16(x) && aligned16(bias) && aligned16(out))
        forward_stripe<true>(x, bias, out, stripe);
    else
        forward_stripe<false>(x, bias, out, stripe);
}

template <bool PACKED>
__device__ __forceinline__ void backward_stripe(const T* g, const T* x, const T* bias, T* dx,
                                                const Stripe& stripe, float (&total)[Pack::size]) {
    constexpr int STEP = PACKED ? BACKWARD_ROWS : 1;
    const Pack shift = load_part(bias + stripe.col, stripe.count, PACKED);
    int64_t at = stripe.start;
#pragma unroll 1
    for (int row = 0; row < stripe.rows; row += STEP, at += STEP * stripe.step) {
        Pack packs[STEP], upstream[STEP];
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            if (row + k >= stripe.rows) break;
            packs[k] = load_part(x + at + k * stripe.step, stripe.count, PACKED);
            upstream[k] = load_part(g + at + k * stripe.step, stripe.count, PACKED);
        }
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            if (row + k >= stripe.rows) break;
#pragma unroll
            for (int e = 0; e < Pack::size; e++) {
                T& value = packs[k].values[e];
                const float h = to_float(value) + to_float(shift.values[e]);
                const float d = to_float(upstream[k].values[e]) * derivative(h);
                total[e] += d;
                value = from_float(d);
            }
            if (dx) store_part(dx + at + k * stripe.step, packs[k], stripe.count, PACKED);
        }
    }
}

// dx and partial may be null. `partial` has one row per stripe of `height` rows.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    bias_gelu_backward(const T* __restrict__ g, const T* __restrict__ x,
                       const T* __restrict__ bias, T* __restrict__ dx,
                       float* __restrict__ partial, int64_t rows, int columns, int height) {
    __shared__ float sums[WARPS][Pack::size][WARP];
    const Stripe stripe(rows, columns, height);
    float total[Pack::size] = {};
    if (stripe.rows > 0) {
        if (columns % Pack::size == 0 && aligned16(g) && aligned16(x) && aligned16(bias) &&
            aligned16(dx))
            backward_stripe<true>(g, x, bias, dx, stripe, total);
        else
            backward_stripe<false>(g, x, bias, dx, stripe, total);
    }
    if (partial == nullptr) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int e = 0; e < Pack::size; e++) sums[warp][e][lane] = total[e];
    __syncthreads();
    // the block's columns in order, so that neighbouring threads write neighbouring sums
    const int i = threadIdx.x;
    const int col = stripe.col - lane * Pack::size + i;
    if (i < WARP * Pack::size && col < columns) {
        float sum = 0.0f;
        for (int w = 0; w < WARPS; w++) sum += sums[w][i % Pack::size][i / Pack::size];
        partial[stripe.index * columns + col] = sum;
    }
}
