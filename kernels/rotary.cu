// Rotary positions: features i and i + half of a row turned by an angle of its position.
//
// x (B, H, length, 2 half) of T with strides, out the same without; cos and sin (positions, half)
// of T, row `start` + t for position t. out = (a cos - b sin, b cos + a sin) for the halves a and b
// of a row; direction -1 turns back, which is the gradient. Computed in float32, rounded once.
// A thread takes a pack of each half at one position in ROWS rows of (B, H): one read of cos and
// sin serves them all. A block takes THREADS such places of the same ROWS rows. Where half or a
// stride is no multiple of a pack, or an address none of 16, elements are read one by one.
// Saves nothing.  Bytes: 4 B H length half sizeof(T), cos and sin from the caches.
// FLOPs: 6 B H length half.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = 4;
constexpr int AT_ONCE = 2;  // of these under way

// What a thread turns: `count` elements (a pack at most) of each half, from element `in` on in the
// first of `rows` rows, `head` of its batch, and every `step` elements in what is written.
struct Place {
    int64_t in, out, step, angle;
    int rows, head, count;
};

template <bool PACKED>
__device__ __forceinline__ void turn(const T* x, const T* cos, const T* sin, T* out, Place at,
                                     int64_t batch_stride, int64_t head_stride, int heads, int half,
                                     float direction) {
    constexpr int STEP = PACKED ? AT_ONCE : 1;
    const Pack c = load_part(cos + at.angle, at.count, PACKED);
    const Pack s = load_part(sin + at.angle, at.count, PACKED);
#pragma unroll 1
    for (int first = 0; first < at.rows; first += STEP) {
        Pack a[STEP], b[STEP];
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            if (first + k >= at.rows) break;
            a[k] = load_part(x + at.in, at.count, PACKED);
            b[k] = load_part(x + at.in + half, at.count, PACKED);
            at.in += head_stride;
            if (++at.head == heads) {
                at.head = 0;
                at.in += batch_stride - heads * head_stride;
            }
        }
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            if (first + k >= at.rows) break;
#pragma unroll
            for (int e = 0; e < Pack::size; e++) {
                const float cosine = to_float(c.values[e]);
                const float sine = direction * to_float(s.values[e]);
                const float left = to_float(a[k].values[e]), right = to_float(b[k].values[e]);
                a[k].values[e] = from_float(left * cosine - right * sine);
                b[k].values[e] = from_float(right * cosine + left * sine);
            }
            store_part(out + at.out, a[k], at.count, PACKED);
            store_part(out + at.out + half, b[k], at.count, PACKED);
            at.out += at.step;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rotary(const T* __restrict__ x, const T* __restrict__ cos, const T* __restrict__ sin,
           T* __restrict__ out, int64_t batch_stride, int64_t head_stride, int64_t stride,
           int64_t start, int batches, int heads, int length, int half, float direction) {
    const unsigned packs = (static_cast<unsigned>(half) + Pack::size - 1) / Pack::size;
    const unsigned tiles = (packs * static_cast<unsigned>(length) + THREADS - 1) / THREADS;
    const unsigned inside = blockIdx.x % tiles * THREADS + threadIdx.x;
    const int position = static_cast<int>(inside / packs);
    const int col = static_cast<int>(inside % packs) * Pack::size;
    if (position >= length) return;
    const int64_t first = static_cast<int64_t>(blockIdx.x / tiles) * ROWS;
    const int64_t batch = first / heads, width = 2 * static_cast<int64_t>(half);
    Place at;
    at.head = static_cast<int>(first % heads);
    at.in = batch * batch_stride + at.head * head_stride + position * stride + col;
    at.out = (first * length + position) * width + col;
    at.step = length * width;
    at.angle = (start + position) * half + col;
    at.rows = static_cast<int>(min(static_cast<int64_t>(batches) * heads - first, int64_t{ROWS}));
    at.count = half - col;
    if (half % Pack::size == 0 && batch_stride % Pack::size == 0 &&
        head_stride % Pack::size == 0 && stride % Pack::size == 0 && aligned16(x) &&
        aligned16(cos) && aligned16(sin) && aligned16(out))
        turn<true>(x, cos, sin, out, at, batch_stride, head_stride, heads, half, direction);
    else
        turn<false>(x, cos, sin, out, at, batch_stride, head_stride, heads, half, direction);
}
