// Gradient descent with momentum for many parameters in one launch.
//
// One block per chunk of a parameter (chunks.cuh). Per element, in float32:
//     d = g + decay x;  b = momentum b + fresh d;  x = x - lr b
// With nesterov x = x - lr (d + momentum b), without momentum (`first` is null) x = x - lr d.
// A tensor's row of `numbers` is lr, momentum, fresh (1 - dampening, on the first step 1), decay,
// nesterov (0 or 1). They and `clip` lie in device memory, as for adamw.cu. x and b, which is
// `first`, are updated in place; a parameter in half precision is rounded from x, its master copy.
// Bytes per parameter: 20 with momentum and a float32 gradient (3 reads, 2 writes), 12 without
// momentum; 2 fewer with a half gradient, 4 more for a parameter in half precision.
// FLOPs per parameter: at most 8.
#include "chunks.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 5)
    sgd(const Tensor* tensors, const Chunk* chunks, const float* numbers, const double* clip,
        int chunk) {
    const Chunk c = chunks[blockIdx.x];
    const Tensor t = tensors[c.tensor];
    const float* row = numbers + 8 * t.row;
    const float lr = row[0], momentum = row[1], fresh = row[2], decay = row[3];
    const bool nesterov = row[4] != 0.0f;
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
