// Every instruction that CUDA C++ has no function for, each as a device body in inline assembly and
// an emulated body. No other file contains assembly. Pointers are generic; the wrappers convert.
#pragma once
#include "common.cuh"

#ifdef GPUGRAD_EMULATE
#define PTX_CALLER , GPUGRAD_HERE  // reports name the line of the kernel that calls
#else
#define PTX_CALLER
#endif

// Where a byte lies in the window of shared memory.
__device__ __forceinline__ unsigned shared_address(const void* p) {
#ifdef GPUGRAD_EMULATE
    return gpugrad_emulator::shared_address(p);
#else
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
#endif
}

// An array of up to five axes as a kernel's parameter, `const __grid_constant__ TensorMap`, the
// contiguous axis first. In the open it is as below: the emulator reads it, and so may a kernel. For
// cp_async_tensor on a GPU the driver writes it (cuTensorMapEncodeTiled), in a way of its own.
// Mirrored in gpugrad/cuda/tensor_map.py.
struct alignas(64) TensorMap {
    const char* start;
    int64_t strides[5];  // bytes
    uint32_t lengths[5];
    uint32_t box[5];  // elements that one copy takes along each axis; zeros: none can
    uint32_t axes, itemsize;
    uint32_t dtype, swizzle, fill;  // as CUtensorMapDataType, -Swizzle and -FloatOOBfill name them
    uint32_t mark;                  // tells the emulator that this was made for it
};

// ---- asynchronous copies from global to shared memory (sm_80) ----

// 16 bytes, both addresses multiples of 16; zeros if not `valid` (then `from` is not read).
__device__ __forceinline__ void cp_async_16(void* to, const void* from,
                                            bool valid = true PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::copy_async(to, from, 16, valid ? 16 : 0, file, line);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
#endif
}

// 4 bytes, for rows that are no multiple of 16.
__device__ __forceinline__ void cp_async_4(void* to, const void* from,
                                           bool valid = true PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::copy_async(to, from, 4, valid ? 4 : 0, file, line);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 4 : 0)
                 : "memory");
#endif
}

// The copies of this thread since the last commit become one group.
__device__ __forceinline__ void cp_async_commit() {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most `GROUPS` of this thread's newest groups are under way. Other threads see the
// data only after a barrier that follows.
template <int GROUPS>
__device__ __forceinline__ void cp_async_wait() {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::copy_wait(GROUPS);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

// ---- tensor cores: fragments of a warp (ldmatrix sm_75, mma sm_80) ----

// Four 8 by 8 matrices of 16-bit elements. Lane 8 i + r passes the address of row r of matrix i;
// out[i] holds elements (lane / 4, 2 (lane % 4)) and the next of matrix i.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&out)[4], const void* row PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::load_matrices(out, row, 4, false, file, line);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// The same of the transposed matrices: elements (2 (lane % 4), lane / 4) and the one below.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&out)[4], const void* row PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::load_matrices(out, row, 4, true, file, line);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// Two matrices; the addresses of lanes 0 to 15 count.
__device__ __forceinline__ void ldmatrix_x2(unsigned (&out)[2], const void* row PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::load_matrices(out, row, 2, false, file, line);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&out)[2], const void* row PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::load_matrices(out, row, 2, true, file, line);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// sums (16, 8) += a (16, 16) b (16, 8) in float32. With g = lane / 4 and t = lane % 4, two elements
// per register: a rows g, g + 8, g, g + 8 at columns 2 t, 2 t, 2 t + 8, 2 t + 8; b rows 2 t and
// 2 t + 8 of column g; sums (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
__device__ __forceinline__ void mma_bf16(float (&sums)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2] PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::mma_16x8x16(sums, a, b, true, file, line);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_f16(float (&sums)[4], const unsigned (&a)[4],
                                        const unsigned (&b)[2] PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::mma_16x8x16(sums, a, b, false, file, line);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ---- conversions and functions ----

// Two floats rounded to nearest even, `low` in the lower half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifdef GPUGRAD_EMULATE
    return gpugrad_emulator::pack(low, high, true);
#else
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

__device__ __forceinline__ unsigned pack_f16(float low, float high) {
#ifdef GPUGRAD_EMULATE
    return gpugrad_emulator::pack(low, high, false);
#else
    unsigned packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

// 2 to the power x in one instruction: relative error about 2^-22, subnormal results become 0.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef GPUGRAD_EMULATE
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// ---- named barriers: some warps of a block; `id` 1 to 15, `threads` a multiple of 32 ----

__device__ __forceinline__ void named_barrier_sync(int id, int threads PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::barrier("named_barrier_sync", id, threads, true, 0, file, line);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// Count as arrived without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::barrier("named_barrier_arrive", id, threads, false, 0, file, line);
#else
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- barriers in shared memory (mbarrier): phases of `count` arrivals ----

// By one thread; then __syncthreads before anybody uses it.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int count PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::mbarrier_init(barrier, count, file, line);
#else
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
                 : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::mbarrier_arrive(barrier, 0, file, line);
#else
    [[maybe_unused]] uint64_t before;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];"
                 : "=l"(before)
                 : "r"(shared_address(barrier))
                 : "memory");
#endif
}

// Wait until the phase of this parity is complete: 0 for the first, 1 for the second, 0 ...
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::mbarrier_wait(barrier, parity, file, line);
#else
    unsigned done;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
#if __CUDA_ARCH__ >= 900
            "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
#else
            "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
#endif
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!done);
#endif
}

#if defined(GPUGRAD_EMULATE) || __CUDA_ARCH__ >= 900
// Arrive, and announce bytes of bulk copies that belong to the phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, int bytes PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::mbarrier_arrive(barrier, bytes, file, line);
#else
    [[maybe_unused]] uint64_t before;
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 %0, [%1], %2;"
                 : "=l"(before)
                 : "r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}

// Copy from global to shared memory by one thread; addresses and bytes are multiples of 16. The
// bytes count towards the barrier's phase.
__device__ __forceinline__ void cp_async_bulk(void* to, const void* from, int bytes,
                                              uint64_t* barrier PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::copy_bulk(to, from, bytes, barrier, file, line);
#else
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
#endif
}

// A box of an array of four axes to shared memory, by one thread: the elements from these
// coordinates on, `i` the contiguous axis, in lines of 128 bytes whose parts of 16 bytes are
// swizzled as wgmma reads them; zeros for elements that do not exist. `to` is a multiple of 128,
// for wgmma of 1024. The bytes of the whole box count towards the barrier's phase.
__device__ __forceinline__ void cp_async_tensor(void* to, const TensorMap* map, int i, int j, int k,
                                                int l, uint64_t* barrier PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    const int place[4] = {i, j, k, l};
    gpugrad_emulator::copy_tensor(to, map, place, 4, barrier, file, line);
#else
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(to)),
        "l"(map), "r"(i), "r"(j), "r"(k), "r"(l), "r"(shared_address(barrier))
        : "memory");
#endif
}
#endif

// ---- the asynchronous proxy: bulk copies and wgmma see shared memory through it (sm_90) ----

// The first place from p on that is a multiple of BYTES in the window of shared memory.
template <int BYTES>
__device__ __forceinline__ unsigned char* align_shared(unsigned char* p) {
    return p + (-shared_address(p) & (BYTES - 1));
}

#if defined(GPUGRAD_EMULATE) || __CUDA_ARCH__ >= 900
// What this thread wrote to shared memory, and what it saw written, becomes visible to later
// wgmma and bulk copies: of this thread, and of those that are ordered behind it.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::proxy_fence();
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
#endif

// ---- products of a warpgroup (wgmma, sm_90a alone): 128 threads, the first a multiple of 128 ----
//
// sums (64, N) += a (64, 16) b (16, N). In a tile of shared memory lines are 128 bytes long and the
// place of every 16 bytes in its line is XORed with the line modulo eight; tiles start at multiples
// of 1024 bytes. Not transposed: a line is 64 elements of a row of a, or of a column of b (tiles of
// b hold its columns as rows). Transposed: a line is 64 rows of a column of a, or 64 columns of a
// row of b.
// With g = lane / 4, t = lane % 4 and w the warp, a in registers is that of mma for rows 16 w to
// 16 w + 15, and sums 4 j to 4 j + 3 are those of mma for these rows and columns 8 j to 8 j + 7.
// From its issue on nobody may touch a product's registers or write its tiles until wgmma_wait.

#if defined(GPUGRAD_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// The descriptor of a tile: `stride` bytes between groups of eight lines along the 16 elements of
// the sum where transposed, along rows of a (columns of b) where not; `leading` bytes between lines
// that are neighbours along rows (columns), where transposed and more than 64. Multiples of 16.
__device__ __forceinline__ uint64_t wgmma_tile(const void* start, int stride, int leading = 16) {
    const unsigned address = shared_address(start);
    return static_cast<uint64_t>(1) << 62 | static_cast<uint64_t>(stride >> 4) << 32 |
           static_cast<uint64_t>(leading >> 4) << 16 | (address & 0x3ffff) >> 4;
}

// The tile that starts so many bytes further on.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t tile, int bytes) {
    return tile + (bytes >> 4);
}

// Before the first product, and after any access to registers of the products that follow.
__device__ __forceinline__ void wgmma_fence() {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::wgmma_fence();
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// The products since the last commit become one group.
__device__ __forceinline__ void wgmma_commit() {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::wgmma_commit();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Registers that products wrote are not read, nor those of the next set, before this line: for the
// compiler, to which the sums look complete where the product was issued.
template <int SIZE>
__device__ __forceinline__ void wgmma_hold([[maybe_unused]] float (&sums)[SIZE]) {
#ifndef GPUGRAD_EMULATE
#pragma unroll
    for (int i = 0; i < SIZE; i++) asm volatile("" : "+f"(sums[i])::"memory");
#endif
}

// Wait until at most `GROUPS` of the newest groups are under way. `sums` belong to a group that is
// complete then; of others call wgmma_hold.
template <int GROUPS, int SIZE>
__device__ __forceinline__ void wgmma_wait(float (&sums)[SIZE] PTX_CALLER) {
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::wgmma_wait(GROUPS, file, line);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
#endif
    wgmma_hold(sums);
}

#define WGMMA_8(i)                                                                     \
    "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]),            \
        "+f"(sums[i + 4]), "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define WGMMA_16 WGMMA_8(0), WGMMA_8(8)
#define WGMMA_32 WGMMA_16, WGMMA_8(16), WGMMA_8(24)
#define WGMMA_64 WGMMA_32, WGMMA_8(32), WGMMA_8(40), WGMMA_8(48), WGMMA_8(56)
#define WGMMA_NAMES_16 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
    "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// The instruction: the sums, then whether to add, then `operands` and the inputs they name.
#define WGMMA(columns, type, names, sums, add_name, operands, ...)                           \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name ", 0;\n"                       \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {"   \
                 names "}, " operands ";\n}"                                                \
                 : sums                                                                      \
                 : "r"(static_cast<int>(add)), __VA_ARGS__)
// The same for the number of columns at hand.
#define WGMMA_OF(type, operands, ...)                                                           \
    if constexpr (SIZE == 16)                                                                   \
        WGMMA("32", type, WGMMA_NAMES_16, WGMMA_16, "%16", operands##_16, __VA_ARGS__);         \
    else if constexpr (SIZE == 32)                                                              \
        WGMMA("64", type, WGMMA_NAMES_32, WGMMA_32, "%32", operands##_32, __VA_ARGS__);         \
    else                                                                                        \
        WGMMA("128", type, WGMMA_NAMES_64, WGMMA_64, "%64", operands##_64, __VA_ARGS__)
#define WGMMA_REGISTERS_16 "{%17, %18, %19, %20}, %21, p, 1, 1, %22"
#define WGMMA_REGISTERS_32 "{%33, %34, %35, %36}, %37, p, 1, 1, %38"
#define WGMMA_REGISTERS_64 "{%65, %66, %67, %68}, %69, p, 1, 1, %70"
#define WGMMA_SHARED_16 "%17, %18, p, 1, 1, %19, %20"
#define WGMMA_SHARED_32 "%33, %34, p, 1, 1, %35, %36"
#define WGMMA_SHARED_64 "%65, %66, p, 1, 1, %67, %68"

// sums (64, N) += a b, or if not `add`, = a b; N = 2 SIZE: 32, 64 or 128; a in registers.
template <bool BFLOAT16, bool B_TRANSPOSED, int SIZE>
__device__ __forceinline__ void wgmma_registers(float (&sums)[SIZE], const unsigned (&a)[4],
                                                uint64_t b, bool add PTX_CALLER) {
    static_assert(SIZE == 16 || SIZE == 32 || SIZE == 64, "32, 64 or 128 columns");
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::wgmma(sums, 2 * SIZE, a, 0, b, add | BFLOAT16 << 1 | B_TRANSPOSED << 3, file,
                            line);
#else
#define INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_TRANSPOSED ? 1 : 0)
    if constexpr (BFLOAT16) {
        WGMMA_OF("bf16", WGMMA_REGISTERS, INPUTS);
    } else {
        WGMMA_OF("f16", WGMMA_REGISTERS, INPUTS);
    }
#undef INPUTS
#endif
}

// The same with both in shared memory.
template <bool BFLOAT16, bool A_TRANSPOSED, bool B_TRANSPOSED, int SIZE>
__device__ __forceinline__ void wgmma_shared(float (&sums)[SIZE], uint64_t a, uint64_t b,
                                             bool add PTX_CALLER) {
    static_assert(SIZE == 16 || SIZE == 32 || SIZE == 64, "32, 64 or 128 columns");
#ifdef GPUGRAD_EMULATE
    gpugrad_emulator::wgmma(sums, 2 * SIZE, nullptr, a, b,
                            add | BFLOAT16 << 1 | A_TRANSPOSED << 2 | B_TRANSPOSED << 3, file,
                            line);
#else
#define INPUTS "l"(a), "l"(b), "n"(A_TRANSPOSED ? 1 : 0), "n"(B_TRANSPOSED ? 1 : 0)
    if constexpr (BFLOAT16) {
        WGMMA_OF("bf16", WGMMA_SHARED, INPUTS);
    } else {
        WGMMA_OF("f16", WGMMA_SHARED, INPUTS);
    }
#undef INPUTS
#endif
}

// ---- registers of a warpgroup (setmaxnreg): a multiple of 8, 24 to 256, by all four warps ----

// Give registers back, for others to take: this warpgroup needs COUNT a thread from here on.
template <int COUNT>
__device__ __forceinline__ void registers_give() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256);
#ifndef GPUGRAD_EMULATE
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// Take them: wait until there are as many.
template <int COUNT>
__device__ __forceinline__ void registers_take() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256);
#ifndef GPUGRAD_EMULATE
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
#endif
