// CUDA's own cuda_bf16.h with the code it has for hosts, not the assembly it has for GPUs.
#pragma once
#pragma push_macro("__CUDA_ARCH__")
#undef __CUDA_ARCH__
#include_next <cuda_bf16.h>
#pragma pop_macro("__CUDA_ARCH__")

// what it has for GPUs alone
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    const auto wide = [](__nv_bfloat16 x) { return static_cast<double>(static_cast<float>(x)); };
    return __double2bfloat16(std::fma(wide(a), wide(b), wide(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __nv_bfloat16 hexp(__nv_bfloat16 x) {
    return __float2bfloat16(std::exp(static_cast<float>(x)));
}
