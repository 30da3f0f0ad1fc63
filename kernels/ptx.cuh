// Every instruction that CUDA C++ has no function for, each as a device body in inline assembly and
// an emulated body. No other file contains assembly. Pointers are generic; the wrappers convert.
#pragma once

#ifdef GPUGRAD_EMULATE
#define PTX_CALLER , GPUGRAD_HERE  // reports name the line of the kernel that calls
#else
#define PTX_CALLER
__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
#endif

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
#endif
