// gelu(h) = h P(h) and its derivative P(h) + h P'(h), in float32.
//
// GELU_TANH chooses P: 0 the normal distribution, 1 GPT-2's approximation by tanh.
// Limits: P is 0 or 1 and P' is 0 beyond 40, so h is limited to 40 where it is multiplied by a P or
// P' that may be 0: infinite h give the limits, not the NaN of 0 * inf. fminf and fmaxf swallow a
// NaN, therefore P comes from the unlimited h.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

#ifndef GELU_TANH
#define GELU_TANH 0
#endif

constexpr float LIMIT = 40.0f;
constexpr float LOG2E = 1.44269504088896341f;

// exp and 1 / x for a result in T. float32 takes the functions that are right to one or two units
// in the last place. In bfloat16 and float16 the instructions' relative errors of 2^-22 (exp2, and
// the product with log2(e) adds |x| 2^-24: below 2^-20 wherever exp(x) is above 2^-20) and 2^-23
// (reciprocal) are lost in the rounding of the result, 2^-9 and 2^-12.
__device__ __forceinline__ float exponential(float x) {
#if GPUGRAD_DTYPE == 0
    return expf(x);
#else
    return exp2_approx(x * LOG2E);
#endif
}
__device__ __forceinline__ float reciprocal(float x) {
#if GPUGRAD_DTYPE == 0
    return 1.0f / x;
#else
    return __fdividef(1.0f, x);
#endif
}

struct Gate {
    float p;      // P(h)
    float slope;  // h P'(h)
};

__device__ __forceinline__ Gate gate(float h) {
    const float bounded = fminf(fmaxf(h, -LIMIT), LIMIT);
#if GELU_TANH
    // P = (1 + tanh(u / 2)) / 2 = 1 / (1 + exp(-u)) and P' = P (1 - P) u', by exp(-|u|), which
    // neither overflows nor cancels in 1 - P.
    constexpr float A = 1.59576912160573f, B = 0.0713548162726f;  // 2 sqrt(2/pi), and * 0.044715
    const float u = h * (A + B * (h * h));
    const float e = exponential(-fabsf(u));
    const float s = reciprocal(1.0f + e);
    return {u < 0.0f ? e * s : s, bounded * (A + 3.0f * B * (bounded * bounded)) * (e * s * s)};
#else
    constexpr float SQRT_HALF = 0.707106781186547524f, DENSITY = 0.398942280401432678f;
    return {0.5f + 0.5f * erff(h * SQRT_HALF),
            bounded * (DENSITY * exponential(-0.5f * (bounded * bounded)))};
#endif
}

__device__ __forceinline__ float gelu(float h) { return fmaxf(h, -LIMIT) * gate(h).p; }
__device__ __forceinline__ float derivative(float h) {
    const Gate at = gate(h);
    return at.p + at.slope;
}
