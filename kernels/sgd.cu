// Gradient descent with momentum for many parameters in one launch.
//
// One block per chunk of a parameter (chunks.cuh). Per element, in float32:
//     d = g + decay x;  b = momentum b + fresh d;  x = x - lr b
// With nesterov x = x - lr (d + momentum b), without momentum (`first` is null) x = x - lr d.
// fresh is 1 - dampening, on a tensor's first step 1. Its row of `settings` is lr, momentum,
// dampening, decay, nesterov (0 or 1), float64. They, steps and `clip` lie in device memory, as for
// adamw.cu. x and b, which is `first`, are updated in place; a parameter in half precision is
// rounded from x, its master copy.
// Bytes per parameter: 20 with momentum and a float32 gradient (3 reads, 2 writes), 12 without
// momentum; 2 fewer with a half gradient, 4 more for a parameter in half precision.
// FLOPs per parameter: at most 8.
#include "chunks.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 5)
    sgd(const Tensor* tensors, const Chunk* chunks, const double* settings, const double* clip,
        int chunk) {
    const Chunk c = chunks[blockIdx.x];
    const Tensor t = tensors[c.tensor];
    const double* row = settings + 8 * t.row;
    const float lr = static_cast<float>(row[0]), momentum = static_cast<float>(row[1]);
    const float fresh = *t.step == 1 ? 1.0f : static_cast<float>(1.0 - row[2]);
    const float decay = static_cast<float>(row[3]);
    const bool nesterov = row[4] != 0.0;
    if (t.first) {
        update_chunk<1>(t, c, chunk, clip, [&](float& x, float g, float& b, float&) {
            if (decay != 0.0f) g += x * decay;  // 0 times infinity would be NaN
            b = b * momentum + g * fresh;
            x -= (nesterov ? b * momentum + g : b) * lr;
        });
    } else {
        update_chunk<0>(t, c, chunk, clip, [&](float& x, float g, float&, float&) {
            if (decay != 0.0f) g += x * decay;
            x -= g * lr;
        });
    }
}
