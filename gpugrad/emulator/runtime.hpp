// CUDA's words for a host compiler: what a kernel source sees instead of NVRTC's built-ins.
//
// Included in front of every emulated source. Nothing here is instrumented in the checked build:
// the parts that touch memory of more than one thread live in runtime.cpp and checks.cpp.
#pragma once
#pragma GCC system_header  // g++ warns of the kernels alone

#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <type_traits>
#include <utility>

#define GPUGRAD_EMULATE 1
#ifndef __CUDA_ARCH__  // the newest architecture that gpugrad's kernels are compiled for
#define __CUDA_ARCH__ 900
#endif

// The CUDA headers for bfloat16 and float16 bring their own versions of what follows.
#define __VECTOR_TYPES_H__
#define __VECTOR_FUNCTIONS_H__
#define __VECTOR_FUNCTIONS_HPP__
#define __HOST_DEFINES_H__

#define __global__ __attribute__((noinline, used))
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __maxnreg__(n)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __cudart_builtin__
#define __device_builtin__
#define __CUDA_HOSTDEVICE__
// used: the compiler must not take a variable that nobody writes for a constant zero
#define __shared__ constinit thread_local __attribute__((used))
#define DYN_SMEM(name) \
    unsigned char* const name = reinterpret_cast<unsigned char*>(gpugrad_emulator::dynamic_memory)
// extern __shared__ T name[], also at file scope
#define GPUGRAD_DYNAMIC(name, ...)                                 \
    [[maybe_unused]] gpugrad_emulator::Dynamic<__VA_ARGS__> name = \
        reinterpret_cast<gpugrad_emulator::Dynamic<__VA_ARGS__>>(  \
            gpugrad_emulator::dynamic_memory)

#define GPUGRAD_EXPORT __attribute__((visibility("default")))
#define GPUGRAD_PLAIN __attribute__((no_sanitize("thread", "undefined")))
// where the kernel's text calls a function; the last two parameters of every built-in that waits
#define GPUGRAD_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace gpugrad_emulator {

// `operands` of the 32 lanes, null outside `lanes`
using Combine = void (*)(void* const* operands, uint32_t lanes);

// Park until all live lanes of `mask` are here, then let one of them combine the operands.
GPUGRAD_EXPORT void collective(const char* op, uint32_t mask, void* operand, Combine combine,
                               bool fence, const char* file, int line);
GPUGRAD_EXPORT uint64_t shuffle(const char* op, uint32_t mask, uint64_t value, int kind, int lane,
                                int width, const char* file, int line);
GPUGRAD_EXPORT uint32_t vote(const char* op, uint32_t mask, uint64_t value, bool match,
                             const char* file, int line);
GPUGRAD_EXPORT int64_t reduce(const char* op, uint32_t mask, int64_t value, int kind,
                              const char* file, int line);
// `threads` 0 is the whole block; returns the sum of `value` over the block
GPUGRAD_EXPORT int barrier(const char* op, int id, int threads, bool wait, int value,
                           const char* file, int line);
// where dynamic shared memory begins; const as threadIdx is: loads of it are not instrumented
GPUGRAD_EXPORT extern char* const dynamic_memory __asm__("gpugrad_dynamic_memory");
template <class Array>
using Dynamic = std::remove_extent_t<Array>* const&;  // to `dynamic_memory`
// what ptx.cuh is made of: asynchronous copies by one thread, and tensor-core operations of a warp
GPUGRAD_EXPORT void copy_async(void* to, const void* from, int size, int from_size,
                               const char* file, int line);
GPUGRAD_EXPORT void copy_commit();
GPUGRAD_EXPORT void copy_wait(int pending_groups);  // -1: all copies, committed or not
GPUGRAD_EXPORT void mbarrier_init(void* barrier, int count, const char* file, int line);
GPUGRAD_EXPORT void mbarrier_arrive(void* barrier, int64_t bytes, const char* file, int line);
GPUGRAD_EXPORT void mbarrier_wait(void* barrier, uint32_t parity, const char* file, int line);
GPUGRAD_EXPORT void copy_bulk(void* to, const void* from, int64_t size, void* barrier,
                              const char* file, int line);
// a box of an array, described by 128 bytes as in ptx.cuh, from `place` along each axis on
GPUGRAD_EXPORT void copy_tensor(void* to, const void* map, const int* place, int axes,
                                void* barrier, const char* file, int line);
GPUGRAD_EXPORT void load_matrices(uint32_t* out, const void* row, int count, bool transposed,
                                  const char* file, int line);
// sums (16, 8) += a (16, 16) b (16, 8), bfloat16 or float16
GPUGRAD_EXPORT void mma_16x8x16(float* sums, const uint32_t* a, const uint32_t* b, bool bfloat16,
                                const char* file, int line);
GPUGRAD_EXPORT uint32_t pack(float low, float high, bool bfloat16);
// products of a warpgroup: sums (64, columns) += a (64, 16) b (16, columns), a in registers or null
// and in shared memory; `flags` as in warpgroup.cpp
GPUGRAD_EXPORT void wgmma(float* sums, int columns, const uint32_t* a, uint64_t a_tile,
                          uint64_t b_tile, int flags, const char* file, int line);
GPUGRAD_EXPORT void wgmma_fence();
GPUGRAD_EXPORT void wgmma_commit();
GPUGRAD_EXPORT void wgmma_wait(int pending, const char* file, int line);
GPUGRAD_EXPORT uint32_t shared_address(const void* p);
GPUGRAD_EXPORT void proxy_fence();
GPUGRAD_EXPORT void atomic_access(const void* address, size_t size, const char* file, int line);
GPUGRAD_EXPORT void range_access(const void* address, size_t size, bool write, const char* file,
                                 int line);
GPUGRAD_EXPORT void fence(bool everywhere);  // else for the thread's own block
[[noreturn]] GPUGRAD_EXPORT void failed(const char* text, const char* file, int line);

template <class To, class From>
GPUGRAD_PLAIN inline To bits(From x) {
    To to{};
    __builtin_memcpy(&to, &x, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
    return to;
}

struct Kernel {
    const char* name;
    void (*entry)(void** arguments);
    int parameters;
    const int* sizes;
    int max_threads;
};

template <class... A>
struct Entry {
    static constexpr int sizes[sizeof...(A) + 1] = {int(sizeof(std::decay_t<A>))..., 0};
    template <void (*kernel)(A...), size_t... I>
    GPUGRAD_PLAIN static void call(void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::decay_t<A>*>(arguments[I])...);
    }
    template <void (*kernel)(A...)>
    GPUGRAD_PLAIN static void call(void** arguments) {
        call<kernel>(arguments, std::index_sequence_for<A...>{});
    }
};

template <auto kernel, class... A>
constexpr Kernel describe(const char* name, void (*)(A...), int max_threads) {
    return {name, &Entry<A...>::template call<kernel>, int(sizeof...(A)), Entry<A...>::sizes,
            max_threads};
}

}  // namespace gpugrad_emulator

#define memcpy(to, from, n) gpugrad_memcpy(to, from, n)
#define memset(to, byte, n) gpugrad_memset(to, byte, n)
GPUGRAD_PLAIN inline void* gpugrad_memcpy(void* to, const void* from, size_t n, GPUGRAD_HERE) {
    gpugrad_emulator::range_access(from, n, false, file, line);
    gpugrad_emulator::range_access(to, n, true, file, line);
    return __builtin_memcpy(to, from, n);
}
GPUGRAD_PLAIN inline void* gpugrad_memset(void* to, int byte, size_t n, GPUGRAD_HERE) {
    gpugrad_emulator::range_access(to, n, true, file, line);
    return __builtin_memset(to, byte, n);
}
namespace std {  // for std::memcpy in the CUDA headers
using ::gpugrad_memcpy, ::gpugrad_memset;
}
#define __trap() gpugrad_emulator::failed("__trap()", __FILE__, __LINE__)
#define __builtin_assume(x) ((void)0)
inline void __nanosleep(unsigned) {}

// ---- vector types ----
#define GPUGRAD_VECTORS(T, name, a2, a4)                                  \
    struct name##1 { T x; };                                              \
    struct alignas(a2) name##2 { T x, y; };                               \
    struct name##3 { T x, y, z; };                                        \
    struct alignas(a4) name##4 { T x, y, z, w; };                         \
    constexpr name##1 make_##name##1(T x) { return {x}; }                 \
    constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
GPUGRAD_VECTORS(signed char, char, 2, 4)
GPUGRAD_VECTORS(unsigned char, uchar, 2, 4)
GPUGRAD_VECTORS(short, short, 4, 8)
GPUGRAD_VECTORS(unsigned short, ushort, 4, 8)
GPUGRAD_VECTORS(int, int, 8, 16)
GPUGRAD_VECTORS(unsigned, uint, 8, 16)
GPUGRAD_VECTORS(long long, longlong, 16, 16)
GPUGRAD_VECTORS(unsigned long long, ulonglong, 16, 16)
GPUGRAD_VECTORS(float, float, 8, 16)
GPUGRAD_VECTORS(double, double, 16, 16)
#undef GPUGRAD_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// const: the values never change under a running thread, and loads of them are not instrumented
GPUGRAD_EXPORT extern const uint3 threadIdx __asm__("gpugrad_thread_index");
GPUGRAD_EXPORT extern const uint3 blockIdx __asm__("gpugrad_block_index");
GPUGRAD_EXPORT extern const uint3 blockDim __asm__("gpugrad_block_size");
GPUGRAD_EXPORT extern const uint3 gridDim __asm__("gpugrad_grid_size");
constexpr int warpSize = 32;

// ---- barriers and warp operations ----
inline void __syncthreads(GPUGRAD_HERE) {
    gpugrad_emulator::barrier("__syncthreads", 0, 0, true, 0, file, line);
}
inline int __syncthreads_count(int x, GPUGRAD_HERE) {
    return gpugrad_emulator::barrier("__syncthreads_count", 0, 0, true, x != 0, file, line);
}
inline int __syncthreads_or(int x, GPUGRAD_HERE) {
    return gpugrad_emulator::barrier("__syncthreads_or", 0, 0, true, x != 0, file, line) > 0;
}
inline int __syncthreads_and(int x, GPUGRAD_HERE) {
    return gpugrad_emulator::barrier("__syncthreads_and", 0, 0, true, x == 0, file, line) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, GPUGRAD_HERE) {
    gpugrad_emulator::collective("__syncwarp", mask, nullptr, nullptr, true, file, line);
}

template <class T>
inline T gpugrad_shuffle(const char* op, int kind, unsigned mask, T x, int lane, int width,
                         const char* file, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_destructible_v<T>,
                  "a shuffle moves 1 to 8 bytes");
    return gpugrad_emulator::bits<T>(gpugrad_emulator::shuffle(
        op, mask, gpugrad_emulator::bits<uint64_t>(x), kind, lane, width, file, line));
}
#define GPUGRAD_SHUFFLE(name, kind)                                             \
    template <class T>                                                          \
    inline T name(unsigned mask, T x, int lane, int width = 32, GPUGRAD_HERE) { \
        return gpugrad_shuffle(#name, kind, mask, x, lane, width, file, line);  \
    }
GPUGRAD_SHUFFLE(__shfl_sync, 0)
GPUGRAD_SHUFFLE(__shfl_up_sync, 1)
GPUGRAD_SHUFFLE(__shfl_down_sync, 2)
GPUGRAD_SHUFFLE(__shfl_xor_sync, 3)
#undef GPUGRAD_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int x, GPUGRAD_HERE) {
    return gpugrad_emulator::vote("__ballot_sync", mask, x != 0, false, file, line);
}
inline int __any_sync(unsigned mask, int x, GPUGRAD_HERE) {
    return gpugrad_emulator::vote("__any_sync", mask, x != 0, false, file, line) != 0;
}
inline int __all_sync(unsigned mask, int x, GPUGRAD_HERE) {
    return gpugrad_emulator::vote("__all_sync", mask, x == 0, false, file, line) == 0;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T x, GPUGRAD_HERE) {
    return gpugrad_emulator::vote("__match_any_sync", mask, gpugrad_emulator::bits<uint64_t>(x),
                                  true, file, line);
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T x, int* equal, GPUGRAD_HERE) {
    *equal = mask == gpugrad_emulator::vote("__match_all_sync", mask,
                                            gpugrad_emulator::bits<uint64_t>(x), true, file, line);
    return *equal ? mask : 0;
}
// Threads run one by one, so none is sure to be together with another.
inline unsigned __activemask() {
    return 1u << (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}
#define GPUGRAD_REDUCE(name, T, kind)                                                      \
    inline T name(unsigned mask, T x, GPUGRAD_HERE) {                                      \
        return static_cast<T>(gpugrad_emulator::reduce(#name, mask, x, kind, file, line)); \
    }
GPUGRAD_REDUCE(__reduce_add_sync, int, 0)
GPUGRAD_REDUCE(__reduce_add_sync, unsigned, 0)
GPUGRAD_REDUCE(__reduce_min_sync, int, 1)
GPUGRAD_REDUCE(__reduce_min_sync, unsigned, 1)
GPUGRAD_REDUCE(__reduce_max_sync, int, 2)
GPUGRAD_REDUCE(__reduce_max_sync, unsigned, 2)
GPUGRAD_REDUCE(__reduce_and_sync, unsigned, 3)
GPUGRAD_REDUCE(__reduce_or_sync, unsigned, 4)
GPUGRAD_REDUCE(__reduce_xor_sync, unsigned, 5)
#undef GPUGRAD_REDUCE

inline void __threadfence() { gpugrad_emulator::fence(true); }
inline void __threadfence_block() { gpugrad_emulator::fence(false); }
inline void __threadfence_system() { gpugrad_emulator::fence(true); }

// ---- atomics: threads run one at a time, so the plain operation is atomic ----
// not inlined: inside a kernel the load and the store would be instrumented as ordinary ones, as
// they would be in a class's own copy and assignment (__half2)
template <class T, class F>
GPUGRAD_PLAIN __attribute__((noinline)) T gpugrad_atomic(T* address, F next, const char* file,
                                                         int line) {
    gpugrad_emulator::atomic_access(address, sizeof(T), file, line);
    T old;
    __builtin_memcpy(static_cast<void*>(&old), address, sizeof(T));
    const T updated = next(old);
    __builtin_memcpy(static_cast<void*>(address), &updated, sizeof(T));
    return old;
}
template <class T>
GPUGRAD_PLAIN inline T gpugrad_sum(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
        using U = std::make_unsigned_t<T>;
        return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));  // wraps, as on the GPU
    } else {
        return a + b;
    }
}
template <class T>
GPUGRAD_PLAIN inline T gpugrad_negative(T x) {
    return static_cast<T>(std::make_unsigned_t<T>(0) - static_cast<std::make_unsigned_t<T>>(x));
}
#define GPUGRAD_ATOMIC(name, expression)                                                \
    template <class T>                                                                  \
    inline T name(T* address, std::type_identity_t<T> x, GPUGRAD_HERE) {                \
        return gpugrad_atomic(                                                          \
            address, [x](T old) GPUGRAD_PLAIN -> T { return expression; }, file, line); \
    }
GPUGRAD_ATOMIC(atomicAdd, gpugrad_sum<T>(old, x))
GPUGRAD_ATOMIC(atomicSub, gpugrad_sum<T>(old, gpugrad_negative(x)))
GPUGRAD_ATOMIC(atomicExch, ((void)old, x))
GPUGRAD_ATOMIC(atomicMin, x < old ? x : old)
GPUGRAD_ATOMIC(atomicMax, old < x ? x : old)
GPUGRAD_ATOMIC(atomicInc, old >= x ? 0 : old + 1)
GPUGRAD_ATOMIC(atomicDec, old == 0 || old > x ? x : old - 1)
GPUGRAD_ATOMIC(atomicAnd, old& x)
GPUGRAD_ATOMIC(atomicOr, old | x)
GPUGRAD_ATOMIC(atomicXor, old ^ x)
#undef GPUGRAD_ATOMIC
template <class T>
inline T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> x,
                   GPUGRAD_HERE) {
    return gpugrad_atomic(
        address, [=](T old) GPUGRAD_PLAIN -> T { return old == expected ? x : old; }, file, line);
}

// of a narrower or wider scope: here the same
#define atomicAdd_block atomicAdd
#define atomicAdd_system atomicAdd
#define atomicSub_block atomicSub
#define atomicSub_system atomicSub
#define atomicExch_block atomicExch
#define atomicExch_system atomicExch
#define atomicMin_block atomicMin
#define atomicMin_system atomicMin
#define atomicMax_block atomicMax
#define atomicMax_system atomicMax
#define atomicAnd_block atomicAnd
#define atomicAnd_system atomicAnd
#define atomicOr_block atomicOr
#define atomicOr_system atomicOr
#define atomicXor_block atomicXor
#define atomicXor_system atomicXor
#define atomicCAS_block atomicCAS
#define atomicCAS_system atomicCAS

// ---- loads and stores with cache hints ----
#define __ldg(p) (*(p))
#define __ldcs(p) (*(p))
#define __ldcg(p) (*(p))
#define __ldca(p) (*(p))
#define __ldcv(p) (*(p))
#define __ldlu(p) (*(p))
#define __stcs(p, x) ((void)(*(p) = (x)))
#define __stcg(p, x) ((void)(*(p) = (x)))
#define __stwt(p, x) ((void)(*(p) = (x)))
#define __stwb(p, x) ((void)(*(p) = (x)))

// ---- bit patterns and integers ----
inline float __int_as_float(int x) { return gpugrad_emulator::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return gpugrad_emulator::bits<float>(x); }
inline int __float_as_int(float x) { return gpugrad_emulator::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return gpugrad_emulator::bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return gpugrad_emulator::bits<double>(x); }
inline long long __double_as_longlong(double x) { return gpugrad_emulator::bits<long long>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
    return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32);
}
inline int __mul24(int x, int y) {
    return static_cast<int>(static_cast<int64_t>(x << 8 >> 8) * (y << 8 >> 8));
}
inline unsigned __umul24(unsigned x, unsigned y) { return (x & 0xffffffu) * (y & 0xffffffu); }
template <class A, class B, class C>
GPUGRAD_PLAIN inline C __dp4a(A x, B y, C sum) {  // of signed or unsigned bytes
    using X = std::conditional_t<std::is_signed_v<A>, int8_t, uint8_t>;
    using Y = std::conditional_t<std::is_signed_v<B>, int8_t, uint8_t>;
    for (int i = 0; i < 32; i += 8) sum += static_cast<X>(x >> i) * static_cast<Y>(y >> i);
    return sum;
}
inline unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
           __brev(static_cast<unsigned>(x >> 32));
}
inline int __hadd(int x, int y) { return static_cast<int>((static_cast<int64_t>(x) + y) >> 1); }
inline int __rhadd(int x, int y) { return static_cast<int>((static_cast<int64_t>(x) + y + 1) >> 1); }
inline unsigned __uhadd(unsigned x, unsigned y) {
    return static_cast<unsigned>((static_cast<uint64_t>(x) + y) >> 1);
}
inline unsigned __urhadd(unsigned x, unsigned y) {
    return static_cast<unsigned>((static_cast<uint64_t>(x) + y + 1) >> 1);
}
inline unsigned __usad(unsigned x, unsigned y, unsigned z) { return (x > y ? x - y : y - x) + z; }
inline unsigned __sad(int x, int y, unsigned z) {
    return static_cast<unsigned>(x > y ? static_cast<int64_t>(x) - y : static_cast<int64_t>(y) - x) +
           z;
}
inline long long __mul64hi(long long x, long long y) {
    return static_cast<long long>(static_cast<__int128>(x) * y >> 64);
}
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<int64_t>(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (n & 31));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = selector >> 4 * i & 15;
        unsigned byte = both >> 8 * (s & 7) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << 8 * i;
    }
    return out;
}

// ---- mathematics (libm: the last bits differ from the GPU's) ----
using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;
template <class A, class B>
constexpr auto min(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return static_cast<C>(std::fmin(C(a), C(b)));
    else return C(b) < C(a) ? C(b) : C(a);
}
template <class A, class B>
constexpr auto max(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return static_cast<C>(std::fmax(C(a), C(b)));
    else return C(a) < C(b) ? C(b) : C(a);
}
inline unsigned umin(unsigned a, unsigned b) { return min(a, b); }
inline unsigned umax(unsigned a, unsigned b) { return max(a, b); }
inline long long llmin(long long a, long long b) { return min(a, b); }
inline long long llmax(long long a, long long b) { return max(a, b); }
inline unsigned long long ullmin(unsigned long long a, unsigned long long b) { return min(a, b); }
inline unsigned long long ullmax(unsigned long long a, unsigned long long b) { return max(a, b); }
// names that the C library already declares with another meaning of the underscores
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __sincosf sincosf
#define __tanhf tanhf
inline float gpugrad_rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline double gpugrad_rsqrt(double x) { return 1.0 / std::sqrt(x); }
#define rsqrtf(x) gpugrad_rsqrt(static_cast<float>(x))
#define rsqrt(x) gpugrad_rsqrt(x)
#define __frsqrt_rn(x) gpugrad_rsqrt(static_cast<float>(x))
inline float fdividef(float x, float y) { return x / y; }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __drcp_rn(double x) { return 1.0 / x; }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }
inline float rcbrtf(float x) { return 1.0f / std::cbrt(x); }
inline float sinpif(float x) { return static_cast<float>(std::sin(3.14159265358979323846 * x)); }
inline float cospif(float x) { return static_cast<float>(std::cos(3.14159265358979323846 * x)); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
inline float normcdff(float x) {
    return static_cast<float>(0.5 * std::erfc(-0.70710678118654752440 * x));
}
// out of range saturates, as in the GPU's conversion instructions, and NaN becomes 0, from double or
// to 64 bits the highest bit alone
template <class I, class F>
GPUGRAD_PLAIN inline I gpugrad_to_integer(F x) {
    using Limits = std::numeric_limits<I>;
    if (x != x) {
        const bool wide = sizeof(I) == 8 || sizeof(F) == 8;
        return wide ? static_cast<I>(1ull << (8 * sizeof(I) - 1)) : 0;
    }
    if (x <= static_cast<F>(Limits::min())) return Limits::min();
    return x >= std::ldexp(F(1), Limits::digits) ? Limits::max() : static_cast<I>(x);
}
#define GPUGRAD_TO_INTEGER(from, F, to, I)                                                    \
    inline I __##from##2##to##_rn(F x) { return gpugrad_to_integer<I>(std::nearbyint(x)); }   \
    inline I __##from##2##to##_rz(F x) { return gpugrad_to_integer<I>(std::trunc(x)); }       \
    inline I __##from##2##to##_rd(F x) { return gpugrad_to_integer<I>(std::floor(x)); }       \
    inline I __##from##2##to##_ru(F x) { return gpugrad_to_integer<I>(std::ceil(x)); }
GPUGRAD_TO_INTEGER(float, float, int, int)
GPUGRAD_TO_INTEGER(float, float, uint, unsigned)
GPUGRAD_TO_INTEGER(float, float, ll, long long)
GPUGRAD_TO_INTEGER(float, float, ull, unsigned long long)
GPUGRAD_TO_INTEGER(double, double, int, int)
GPUGRAD_TO_INTEGER(double, double, uint, unsigned)
GPUGRAD_TO_INTEGER(double, double, ll, long long)
GPUGRAD_TO_INTEGER(double, double, ull, unsigned long long)
#undef GPUGRAD_TO_INTEGER
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned x) { return x; }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline double __ull2double_rn(unsigned long long x) { return static_cast<double>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline int __double2hiint(double x) {
    return static_cast<int>(gpugrad_emulator::bits<uint64_t>(x) >> 32);
}
inline int __double2loint(double x) {
    return static_cast<int>(gpugrad_emulator::bits<uint64_t>(x) & 0xffffffffu);
}
inline double __hiloint2double(int high, int low) {
    return gpugrad_emulator::bits<double>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 |
                                          static_cast<uint32_t>(low));
}
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline long long clock64() { return 0; }
