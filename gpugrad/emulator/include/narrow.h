// What CUDA's headers for bfloat16 and float16 have for GPUs alone, here by way of float: as there,
// a result is one rounding of a float's away from the exact one.
#pragma once

#define GPUGRAD_NARROW_FUNCTION(T, name, value)   \
    inline T h##name(T narrow) {                  \
        const float x = static_cast<float>(narrow); \
        return T(static_cast<float>(value));      \
    }                                             \
    inline T##2 h2##name(T##2 a) { return {h##name(a.x), h##name(a.y)}; }

// `word` is what the names of conversions call the type, `exact` rounds a double to it
#define GPUGRAD_NARROW(T, word, exact)                                                        \
    GPUGRAD_NARROW_FUNCTION(T, sqrt, std::sqrt(x))                                            \
    GPUGRAD_NARROW_FUNCTION(T, rsqrt, 1.0f / std::sqrt(x))                                    \
    GPUGRAD_NARROW_FUNCTION(T, rcp, 1.0f / x)                                                 \
    GPUGRAD_NARROW_FUNCTION(T, exp, std::exp(x))                                              \
    GPUGRAD_NARROW_FUNCTION(T, exp2, std::exp2(x))                                            \
    GPUGRAD_NARROW_FUNCTION(T, exp10, ::exp10f(x))                                            \
    GPUGRAD_NARROW_FUNCTION(T, log, std::log(x))                                              \
    GPUGRAD_NARROW_FUNCTION(T, log2, std::log2(x))                                            \
    GPUGRAD_NARROW_FUNCTION(T, log10, std::log10(x))                                          \
    GPUGRAD_NARROW_FUNCTION(T, sin, std::sin(x))                                              \
    GPUGRAD_NARROW_FUNCTION(T, cos, std::cos(x))                                              \
    GPUGRAD_NARROW_FUNCTION(T, tanh, std::tanh(x))                                            \
    GPUGRAD_NARROW_FUNCTION(T, floor, std::floor(x))                                          \
    GPUGRAD_NARROW_FUNCTION(T, ceil, std::ceil(x))                                            \
    GPUGRAD_NARROW_FUNCTION(T, trunc, std::trunc(x))                                          \
    GPUGRAD_NARROW_FUNCTION(T, rint, std::nearbyint(x))                                       \
    inline T __hfma(T a, T b, T c) {                                                          \
        const auto wide = [](T x) { return static_cast<double>(static_cast<float>(x)); };     \
        return exact(std::fma(wide(a), wide(b), wide(c)));                                    \
    }                                                                                         \
    inline T __hfma_relu(T a, T b, T c) {                                                     \
        const T x = __hfma(a, b, c);                                                          \
        return static_cast<float>(x) < 0 ? T(0.0f) : x;                                       \
    }                                                                                         \
    inline T##2 __hfma2(T##2 a, T##2 b, T##2 c) {                                             \
        return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                                \
    }                                                                                         \
    inline T##2 __hfma2_relu(T##2 a, T##2 b, T##2 c) {                                        \
        return {__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)};                      \
    }                                                                                         \
    inline int __##word##2int_rn(T x) { return __float2int_rn(static_cast<float>(x)); }       \
    inline int __##word##2int_rd(T x) { return __float2int_rd(static_cast<float>(x)); }       \
    inline int __##word##2int_ru(T x) { return __float2int_ru(static_cast<float>(x)); }
