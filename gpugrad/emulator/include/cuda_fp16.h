// CUDA's own cuda_fp16.h with the code it has for hosts, not the assembly it has for GPUs.
#pragma once
#pragma push_macro("__CUDA_ARCH__")
#undef __CUDA_ARCH__
#include_next <cuda_fp16.h>
#pragma pop_macro("__CUDA_ARCH__")

// what it has for GPUs alone
inline __half __hfma(__half a, __half b, __half c) {
    const auto wide = [](__half x) { return static_cast<double>(static_cast<float>(x)); };
    return __double2half(std::fma(wide(a), wide(b), wide(c)));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __half hexp(__half x) { return __float2half(std::exp(static_cast<float>(x))); }
