// Random numbers: words, uniform and normal numbers, dropout masks, integers, each a pure function
// of (seed, offset, element), equal to gpugrad/ops/philox.py: bit for bit, but for the last bits of
// the logarithm, sine and cosine in normal numbers.
//
// out (n). A thread takes blocks of four Philox words in turn; each block makes four elements of up
// to 32 bits or two of 64, stored at once. Nothing is read but `state` (philox.cuh: locate).
// Each operation is rounded on its own, as NumPy does it: products do not join sums in an fma.
// Bytes: n sizeof(element).  About 25 instructions per element for the words, twice that for 64
// bits and for normal numbers: arithmetic, not memory, is the limit.
#include "common.cuh"
#include "philox.cuh"

constexpr int THREADS = 256;

template <class Element, int SIZE>
struct alignas(SIZE * sizeof(Element)) Group {
    Element values[SIZE];
};

// Fill out with what make(words, values) makes of each block of words: SIZE values.
template <int SIZE, class Element, class Make>
__device__ __forceinline__ void fill(Element* out, int64_t n, uint64_t seed, uint64_t offset,
                                     const uint64_t* state, Make make) {
    using Values = Group<Element, SIZE>;
    locate(state, seed, offset);
    const bool aligned = reinterpret_cast<uint64_t>(out) % sizeof(Values) == 0;
    const int64_t groups = (n + SIZE - 1) / SIZE;
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    int64_t group = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    for (; group < groups; group += step) {
        const int64_t start = group * SIZE;
        unsigned words[4];
        philox(seed, offset + static_cast<uint64_t>(group), words);
        Values made;
        make(words, made.values);
        if (aligned && start + SIZE <= n) {
            *reinterpret_cast<Values*>(out + start) = made;
        } else {
            for (int i = 0; i < SIZE; i++)
                if (start + i < n) out[start + i] = made.values[i];
        }
    }
}

// Words 2 i and 2 i + 1 as one integer, low word first.
__device__ __forceinline__ uint64_t pair(const unsigned (&words)[4], int i) {
    return static_cast<uint64_t>(words[2 * i + 1]) << 32 | words[2 * i];
}

// On [0, 1), exact.
__device__ __forceinline__ float unit(unsigned word) {
    return static_cast<float>(word >> 8) * 0x1p-24f;
}
__device__ __forceinline__ double unit(uint64_t pair) {
    return static_cast<double>(pair >> 11) * 0x1p-53;
}

__device__ __forceinline__ float affine(float x, float factor, float shift) {
    x = __fmul_rn(x, factor);
    return shift != 0.0f ? __fadd_rn(x, shift) : x;
}
__device__ __forceinline__ double affine(double x, double factor, double shift) {
    x = __dmul_rn(x, factor);
    return shift != 0.0 ? __dadd_rn(x, shift) : x;
}

// Box and Muller: two normal numbers of u in (0, 1] and v in [0, 1).
__device__ __forceinline__ void box_muller(float u, float v, float (&z)[2]) {
    const float radius = sqrtf(-2.0f * logf(u));
    const float angle = __fmul_rn(v, 6.28318530717958647692f);
    float sine, cosine;
    sincosf(angle, &sine, &cosine);
    z[0] = __fmul_rn(radius, cosine);
    z[1] = __fmul_rn(radius, sine);
}
__device__ __forceinline__ void box_muller(double u, double v, double (&z)[2]) {
    const double radius = sqrt(-2.0 * log(u));
    const double angle = __dmul_rn(v, 6.28318530717958647692);
    double sine, cosine;
    sincos(angle, &sine, &cosine);
    z[0] = __dmul_rn(radius, cosine);
    z[1] = __dmul_rn(radius, sine);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    random_words(uint32_t* out, int64_t n, uint64_t seed, uint64_t offset, const uint64_t* state) {
    fill<4>(out, n, seed, offset, state, [](const unsigned (&words)[4], uint32_t (&values)[4]) {
        for (int i = 0; i < 4; i++) values[i] = words[i];
    });
}

// low + width * unit, not above `last`, the largest number below the end of the interval: rounding
// may have reached the end.
extern "C" __global__ void __launch_bounds__(THREADS)
    random_uniform(T* out, int64_t n, uint64_t seed, uint64_t offset, const uint64_t* state,
                   float low, float width, float last) {
    fill<4>(out, n, seed, offset, state, [=](const unsigned (&words)[4], T (&values)[4]) {
        for (int i = 0; i < 4; i++) {
            values[i] = from_float(affine(unit(words[i]), width, low));
            if (to_float(values[i]) > last) values[i] = from_float(last);
        }
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    random_uniform_float64(double* out, int64_t n, uint64_t seed, uint64_t offset,
                           const uint64_t* state, double low, double width, double last) {
    fill<2>(out, n, seed, offset, state, [=](const unsigned (&words)[4], double (&values)[2]) {
        for (int i = 0; i < 2; i++) {
            values[i] = affine(unit(pair(words, i)), width, low);
            if (values[i] > last) values[i] = last;
        }
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    random_normal(T* out, int64_t n, uint64_t seed, uint64_t offset, const uint64_t* state,
                  float loc, float scale) {
    fill<4>(out, n, seed, offset, state, [=](const unsigned (&words)[4], T (&values)[4]) {
        for (int j = 0; j < 4; j += 2) {
            float z[2];
            const float u = static_cast<float>(words[j]) * 0x1p-32f + 0x1p-33f;  // first is exact
            box_muller(u, unit(words[j + 1]), z);
            for (int i = 0; i < 2; i++) values[j + i] = from_float(affine(z[i], scale, loc));
        }
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    random_normal_float64(double* out, int64_t n, uint64_t seed, uint64_t offset,
                          const uint64_t* state, double loc, double scale) {
    fill<2>(out, n, seed, offset, state, [=](const unsigned (&words)[4], double (&values)[2]) {
        box_muller(unit(pair(words, 0)) + 0x1p-54, unit(pair(words, 1)), values);
        for (int i = 0; i < 2; i++) values[i] = affine(values[i], scale, loc);
    });
}

// True, meaning keep, where the word is at least the threshold, 0 to 2^32.
extern "C" __global__ void __launch_bounds__(THREADS)
    random_keep_mask(bool* out, int64_t n, uint64_t seed, uint64_t offset, const uint64_t* state,
                     uint64_t threshold) {
    fill<4>(out, n, seed, offset, state, [=](const unsigned (&words)[4], bool (&values)[4]) {
        for (int i = 0; i < 4; i++) values[i] = words[i] >= threshold;
    });
}

// low + ((pair * (largest + 1)) >> 64): an integer from low to low + largest. The product is exact;
// largest + 1 may be 2^64.
extern "C" __global__ void __launch_bounds__(THREADS)
    random_integers(int64_t* out, int64_t n, uint64_t seed, uint64_t offset, const uint64_t* state,
                    int64_t low, uint64_t largest) {
    fill<2>(out, n, seed, offset, state, [=](const unsigned (&words)[4], int64_t (&values)[2]) {
        for (int i = 0; i < 2; i++) {
            const uint64_t drawn = pair(words, i);
            const uint64_t carry = drawn * largest + drawn < drawn;
            const uint64_t above = __umul64hi(drawn, largest) + carry;
            values[i] = static_cast<int64_t>(static_cast<uint64_t>(low) + above);
        }
    });
}
