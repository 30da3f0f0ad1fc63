// float16 where CUDA's own cuda_fp16.h is not installed: the types and the conversions that
// gpugrad's kernels use, with the same results bit for bit. Only the emulator includes this.
#pragma once

struct __half {
    unsigned short bits;
    explicit operator float() const;  // no arithmetic without a conversion
};
struct alignas(4) __half2 {
    __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }

// Every NaN becomes 0x7fffffff.
inline float __half2float(__half x) {
    if ((x.bits & 0x7fff) > 0x7c00) return __builtin_bit_cast(float, 0x7fffffff);
    return static_cast<float>(__builtin_bit_cast(_Float16, x.bits));
}
inline __half::operator float() const { return __half2float(*this); }

// To nearest, ties to even; beyond the largest comes infinity. Every NaN becomes 0x7fff.
inline __half __float2half(float x) {
    if (x != x) return {0x7fff};
    return {__builtin_bit_cast(unsigned short, static_cast<_Float16>(x))};
}
inline __half __float2half_rn(float x) { return __float2half(x); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
