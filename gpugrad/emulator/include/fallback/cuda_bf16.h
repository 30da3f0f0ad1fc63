// bfloat16 where CUDA's own cuda_bf16.h is not installed: the types and the conversions that
// gpugrad's kernels use, with the same results bit for bit. Only the emulator includes this.
#pragma once

struct __nv_bfloat16 {
    unsigned short bits;
    explicit operator float() const;  // no arithmetic without a conversion
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

inline float __bfloat162float(__nv_bfloat16 x) {
    return __builtin_bit_cast(float, static_cast<unsigned>(x.bits) << 16);
}
inline __nv_bfloat16::operator float() const { return __bfloat162float(*this); }

// To nearest, ties to even; beyond the largest comes infinity. Every NaN becomes 0x7fff.
inline __nv_bfloat16 __float2bfloat16(float x) {
    if (x != x) return {0x7fff};
    const unsigned bits = __builtin_bit_cast(unsigned, x);
    return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __float2bfloat16(x); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16(x), __float2bfloat16(y)};
}
