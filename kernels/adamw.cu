// AdamW, and Adam with weight decay in the gradient, for many parameters in one launch.
//
// One block per chunk of a parameter (chunks.cuh). Per element, in float32:
//     g = penalty x + g;  m = m + (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
//     x = keep x - rate m / (sqrt(v) + eps)
// keep = 1 - lr decay for AdamW, penalty = decay for Adam, and rate and eps hold the bias
// corrections sqrt(1 - b2^t) and 1 - b1^t of the tensor's own step t. A tensor's row of `settings`
// is lr, b1, b2, eps, decay, decoupled (0 or 1), float64; one thread derives those numbers from it,
// as float64 too (1 - 0.999 is not 0.001 in float32). Settings, steps and `clip` (a norm and a
// factor for the gradients, or null) lie in device memory, so a captured launch follows a schedule.
// x, m, v are updated in place, m and v are `first` and `second`; a parameter in half precision is
// rounded from x, its master copy.
// Bytes per parameter: 28 with a float32 gradient (4 reads, 3 writes), 26 with a half one; 4 more
// for a parameter in half precision (2 to see whether it was changed, 2 written).
// FLOPs per parameter: 12, among them a division and a square root.
#include "chunks.cuh"

constexpr int NUMBERS = 7;

// What an element's step needs, from a row of settings: see above. A call, not inlined: one thread
// of a block makes it, and the loop over elements keeps its registers.
__device__ __attribute__((noinline)) void derive(const double* row, double step, float* numbers) {
    const double lr = row[0], beta1 = row[1], beta2 = row[2], decay = row[4];
    const bool decoupled = row[5] != 0.0;
    const double root = sqrt(1.0 - pow(beta2, step));
    numbers[0] = static_cast<float>(1.0 - beta1);
    numbers[1] = static_cast<float>(beta2);
    numbers[2] = static_cast<float>(1.0 - beta2);
    numbers[3] = static_cast<float>(row[3] * root);
    numbers[4] = static_cast<float>(lr * root / (1.0 - pow(beta1, step)));
    numbers[5] = static_cast<float>(decoupled ? 1.0 - lr * decay : 1.0);
    numbers[6] = static_cast<float>(decoupled ? 0.0 : decay);
}

extern "C" __global__ void __launch_bounds__(THREADS, 6)
    adamw(const Tensor* tensors, const Chunk* chunks, const double* settings, const double* clip,
          int chunk) {
    __shared__ float numbers[NUMBERS];
    const Chunk c = chunks[blockIdx.x];
    if (threadIdx.x == 0) {
        const Tensor& t = tensors[c.tensor];
        derive(settings + 8 * t.row, *t.step, numbers);
    }
    __syncthreads();
    const float fresh = numbers[0], beta2 = numbers[1], fresh2 = numbers[2], eps = numbers[3];
    const float rate = numbers[4], keep = numbers[5], penalty = numbers[6];
    update_chunk<2>(tensors[c.tensor], c, chunk, clip, [&](float& x, float g, float& m, float& v) {
        if (penalty != 0.0f) g += x * penalty;  // 0 times infinity would be NaN
        m += (g - m) * fresh;
        v = v * beta2 + g * g * fresh2;
        x = x * keep - m / (sqrtf(v) + eps) * rate;
    });
}
