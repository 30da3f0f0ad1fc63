// AdamW, and Adam with weight decay in the gradient, for many parameters in one launch.
//
// One block per chunk of a parameter (chunks.cuh). Per element, in float32:
//     g = penalty x + g;  m = m + (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
//     x = keep x - rate m / (sqrt(v) + eps)
// A tensor's row of `numbers` is 1 - b1, b2, 1 - b2, eps, rate, keep, penalty, with the bias
// corrections of its own step in eps and rate: keep = 1 - lr decay for AdamW, penalty = decay for
// Adam. They and `clip` (a norm and a factor for the gradients, or null) lie in device memory, so a
// captured launch follows a schedule. x, m, v are updated in place, m and v are `first` and
// `second`; a parameter in half precision is rounded from x, its master copy.
// Bytes per parameter: 28 with a float32 gradient (4 reads, 3 writes), 26 with a half one; 4 more
// for a parameter in half precision (2 to see whether it was changed, 2 written).
// FLOPs per parameter: 12, among them a division and a square root.
#include "chunks.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 6)
    adamw(const Tensor* tensors, const Chunk* chunks, const float* numbers, const double* clip,
          int chunk) {
    const Chunk c = chunks[blockIdx.x];
    const Tensor t = tensors[c.tensor];
    const float* row = numbers + 8 * t.row;
    const float fresh = row[0], beta2 = row[1], fresh2 = row[2], eps = row[3], rate = row[4];
    const float keep = row[5], penalty = row[6];
    update_chunk<2>(t, c, chunk, clip, [&](float& x, float g, float& m, float& v) {
        if (penalty != 0.0f) g += x * penalty;  // 0 times infinity would be NaN
        m += (g - m) * fresh;
        v = v * beta2 + g * g * fresh2;
        x = x * keep - m / (sqrtf(v) + eps) * rate;
    });
}
