// Token and position embedding in one: rows of two tables, added.
//
// ids (N) int32 or, if `wide`, int64; tokens (V, C), positions (length, C), out (N, C) of T:
//     out[n] = tokens[ids[n]] + positions[n % length], NaN where an id is out of range.
// A warp takes a row of at most 64 packs; the sum is rounded once. Saves nothing. The gradient is
// that of embedding.cu, and sums over the N / length sequences (column_sums.cu).
// Bytes: (N + min(N, V) + length) C sizeof(T), where rows read again come from the caches.
// FLOPs: N C.
#include "ids.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int COPIES = 2;  // packs of each table that a thread has under way

extern "C" __global__ void __launch_bounds__(THREADS)
    embed_forward(const void* __restrict__ ids, bool wide, const T* __restrict__ tokens,
                  const T* __restrict__ positions, T* __restrict__ out, int64_t count, int64_t rows,
                  int64_t length, int columns) {
    constexpr int WIDTH = WARP * COPIES * Pack::size;
    const int parts = static_cast<int>((static_cast<int64_t>(columns) + WIDTH - 1) / WIDTH);
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int64_t row = warp / parts;
    if (row >= count) return;
    const bool aligned = columns % Pack::size == 0 && aligned16(tokens) && aligned16(positions) &&
                         aligned16(out);
    const int64_t first =
        warp % parts * WIDTH + static_cast<int64_t>(threadIdx.x % WARP) * Pack::size;
    const int64_t id = id_at(ids, wide, row);
    const bool known = id >= 0 && id < rows;
    const T* token = tokens + (known ? id * columns : 0);
    const T* position = positions + row % length * columns;
    T* to = out + row * columns;
    Pack here[COPIES], there[COPIES];
#pragma unroll
    for (int k = 0; k < COPIES; k++) {
        const int64_t col = first + k * WARP * Pack::size;
        here[k] = load_part(token + col, columns - col, aligned);
        there[k] = load_part(position + col, columns - col, aligned);
    }
#pragma unroll
    for (int k = 0; k < COPIES; k++) {
        const int64_t col = first + k * WARP * Pack::size;
#pragma unroll
        for (int e = 0; e < Pack::size; e++) {
            const float sum = to_float(here[k].values[e]) + to_float(there[k].values[e]);
            here[k].values[e] = from_float(known ? sum : value_nan());
        }
        store_part(to + col, here[k], columns - col, aligned);
    }
}
