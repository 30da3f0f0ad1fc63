// The emulator's specification: kernels with one mistake each. The line of the report is marked
// "// HERE" behind the kernel's first line "// KIND ..."; test_planted.py reads both.
#ifndef DYN_SMEM
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#endif
constexpr unsigned FULL = 0xffffffffu;

// Race variable=tile: the barrier between writing and reading is missing.
extern "C" __global__ void missing_barrier(float* x) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];  // HERE
    x[threadIdx.x] = tile[63 - threadIdx.x] + 1;  // HERE
}

// Race variable=scratch: the second round overwrites what a slow warp still reads.
extern "C" __global__ void missing_second_barrier(float* x) {
    __shared__ float scratch[64];
    float total = 0;
    for (int round = 0; round < 2; round++) {
        scratch[threadIdx.x] = x[threadIdx.x] + round;  // HERE
        __syncthreads();
        total += scratch[63 - threadIdx.x];  // HERE
    }
    x[threadIdx.x] = total;
}

// Race variable=counter: a sum that is not atomic.
extern "C" __global__ void sum_without_atomic(float* x) {
    __shared__ float counter;
    if (threadIdx.x == 0) counter = 0;
    __syncthreads();
    counter += x[threadIdx.x];  // HERE
    __syncthreads();
    x[threadIdx.x] = counter;
}

// Race variable=counter: an atomic sum read by others without a barrier.
extern "C" __global__ void atomic_then_read(int* x) {
    __shared__ int counter;
    if (threadIdx.x == 0) counter = 0;
    __syncthreads();
    atomicAdd(&counter, x[threadIdx.x]);  // HERE
    x[threadIdx.x] = counter;             // HERE
}

// Race variable=counter: set to zero and added to without a barrier between.
extern "C" __global__ void zero_then_atomic(int* x) {
    __shared__ int counter;
    if (threadIdx.x == 0) counter = 0;    // HERE
    __syncwarp();
    atomicAdd(&counter, x[threadIdx.x]);  // HERE
    __syncthreads();
    x[threadIdx.x] = counter;
}

// Race variable=tile: the lanes of one warp are not ordered without __syncwarp.
extern "C" __global__ void missing_syncwarp(float* x) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];  // HERE
    x[threadIdx.x] = tile[threadIdx.x ^ 1];  // HERE
}

// Race variable=tile: a shuffle moves registers and orders no memory.
extern "C" __global__ void shuffle_as_fence(float* x) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];  // HERE
    const float y = __shfl_xor_sync(FULL, x[threadIdx.x], 1);
    x[threadIdx.x] = tile[threadIdx.x ^ 1] + y;  // HERE
}

// Race variable=tile: __syncwarp orders half of the warp only.
extern "C" __global__ void half_syncwarp(float* x) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];  // HERE
    if (threadIdx.x < 16) __syncwarp(0x0000ffffu);
    else __syncwarp(0xffff0000u);
    x[threadIdx.x] = tile[threadIdx.x ^ 16];  // HERE
}

// Race variable=tile: __syncwarp orders no other warp.
extern "C" __global__ void syncwarp_as_barrier(float* x) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];  // HERE
    __syncwarp();
    x[threadIdx.x] = tile[threadIdx.x ^ 32];  // HERE
}

// Race variable=x: threads of one block write one element of an array.
extern "C" __global__ void same_element(float* x) {
    x[threadIdx.x / 2] = threadIdx.x;  // HERE
}

// Race variable=x: two blocks write one element. GRID 2
extern "C" __global__ void blocks_write_one(float* x) {
    if (threadIdx.x == 0) x[0] = blockIdx.x;  // HERE
}

// Race variable=x: a block reads what another writes. GRID 2
extern "C" __global__ void blocks_read_written(float* x) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    const float y = x[(i + 1) % n];  // HERE
    x[i] = y;                        // HERE
}

__device__ unsigned ticket;

// Race variable=x: the last block reads the others' results without a fence. GRID 3
extern "C" __global__ void ticket_without_fence(float* x) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        x[blockIdx.x] = blockIdx.x;  // HERE
        last = atomicInc(&ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x < 3) x[32] += x[threadIdx.x];  // HERE
}

// Race variable=x: a fence for the own block does not reach the last block. GRID 3
extern "C" __global__ void ticket_with_narrow_fence(float* x) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        x[blockIdx.x] = blockIdx.x;  // HERE
        __threadfence_block();
        last = atomicInc(&ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x < 3) x[32] += x[threadIdx.x];  // HERE
}

__device__ int turn;
__device__ __noinline__ int element(volatile int* p, int i) { return p[i]; }

// Race variable=x: a volatile array of the thread's own tells no other block anything. GRID 2
extern "C" __global__ void volatile_local_array(float* x) {
    if (threadIdx.x > 0) return;
    const bool first = atomicAdd(&turn, 1) % 2 == 0;
    if (first) x[0] = 1.0f;  // HERE
    __threadfence();
    volatile int mine[2] = {1, 2};
    mine[threadIdx.x] = 3;
    const int known = element(mine, threadIdx.x);
    if (!first) x[1] = known + x[0];  // HERE
}

// Race variable=dynamic: two warps share one slot of dynamic shared memory.
extern "C" __global__ void dynamic_race(float* x) {
    DYN_SMEM(memory);
    float* slots = reinterpret_cast<float*>(memory);
    slots[threadIdx.x % 32] = x[threadIdx.x];  // HERE
    __syncthreads();
    x[threadIdx.x] = slots[threadIdx.x % 32];
}

// Uninitialised variable=scratch: fmaxf hides the NaN that shared memory would show.
extern "C" __global__ void uninitialised_max(float* x) {
    __shared__ float scratch[32];
    if (threadIdx.x < 16) scratch[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = fmaxf(x[threadIdx.x], scratch[threadIdx.x % 32]);  // HERE
}

// Uninitialised variable=bins: a histogram whose bins were never zeroed.
extern "C" __global__ void uninitialised_atomic(int* x) {
    __shared__ int bins[8];
    atomicAdd(&bins[threadIdx.x % 8], 1);  // HERE
    __syncthreads();
    if (threadIdx.x < 8) x[threadIdx.x] = bins[threadIdx.x];
}

// Uninitialised variable=slots: the fourth component of vectors is not there.
extern "C" __global__ void uninitialised_component(float* x) {
    __shared__ __align__(16) float slots[256];
    for (int c = 0; c < 3; c++) slots[4 * threadIdx.x + c] = x[threadIdx.x];
    __syncthreads();
    const float4 v = reinterpret_cast<float4*>(slots)[63 - threadIdx.x];  // HERE
    x[threadIdx.x] = v.x + v.y + v.z + v.w;  // HERE
}

// Uninitialised variable=pairs: a member that is as large as the other one.
extern "C" __global__ void uninitialised_member(float* x) {
    struct Pair { float a, b; };
    __shared__ Pair pairs[64], copies[64];
    pairs[threadIdx.x].a = x[threadIdx.x];
    __syncthreads();
    copies[threadIdx.x] = pairs[63 - threadIdx.x];  // HERE
    x[threadIdx.x] = copies[threadIdx.x].a;
}

// Uninitialised variable=dynamic: a tail of the dynamic shared memory that no one filled.
extern "C" __global__ void uninitialised_dynamic(float* x) {
    DYN_SMEM(memory);
    float* slots = reinterpret_cast<float*>(memory);
    if (threadIdx.x < 63) slots[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = slots[63 - threadIdx.x];  // HERE
}

// OutOfBounds variable=x: one past the end of an array.
extern "C" __global__ void one_past_the_end(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = i;  // HERE
}

// OutOfBounds variable=x: one before the start of an array.
extern "C" __global__ void one_before_the_start(float* x) {
    const int i = threadIdx.x;
    if (i == 0) x[i] = x[i - 1];  // HERE
}

// OutOfBounds variable=x: the last 16-byte load reaches beyond the array.
extern "C" __global__ void vector_past_the_end(const float* x, float* out, int n) {
    const int i = threadIdx.x * 4;
    if (i < n) {
        const float4 v = *reinterpret_cast<const float4*>(x + i);  // HERE
        out[threadIdx.x] = v.x + v.w;
    }
}

// OutOfBounds: an index outside of a shared array.
extern "C" __global__ void shared_index(float* x) {
    __shared__ float tile[8][8];
    const int i = threadIdx.x;
    tile[i / 8][i % 8 + (i == 63)] = x[i];  // HERE
    __syncthreads();
    x[i] = tile[0][i % 8];
}

// OutOfBounds variable=dynamic: dynamic shared memory smaller than what is used.
extern "C" __global__ void dynamic_too_small(float* x) {
    DYN_SMEM(memory);
    reinterpret_cast<float*>(memory)[threadIdx.x + 1] = x[threadIdx.x];  // HERE
}

// OutOfBounds: an index outside of a thread's own array.
extern "C" __global__ void local_index(float* x, int n) {
    float values[4] = {};
    for (int i = 0; i < n; i++) values[i % 5] += x[threadIdx.x];  // HERE
    x[threadIdx.x] = values[0] + values[3];
}

// Misaligned: a 16-byte load from an address that is a multiple of 4 only.
extern "C" __global__ void misaligned_vector(float* x) {
    const float4 v = *reinterpret_cast<const float4*>(x + 4 * (threadIdx.x % 4) + 1);  // HERE
    if (v.x == 12345.0f) x[threadIdx.x] = v.y;
}

// Overflow: a row offset in 32 bits.
extern "C" __global__ void overflowing_offset(float* x, int columns) {
    const int row = threadIdx.x + 1;
    const int start = row * columns;  // HERE
    x[threadIdx.x] = start;
}

// Overflow: a shift by the width of the type.
extern "C" __global__ void wide_shift(int* x) {
    x[threadIdx.x] = 1 << threadIdx.x;  // HERE
}

// Overflow: a float that int cannot hold.
extern "C" __global__ void float_beyond_int(float* x) {
    const int i = static_cast<int>(x[threadIdx.x] * 1e10f);  // HERE
    x[threadIdx.x] = i;
}

// Overflow: no number, as an unsigned integer.
extern "C" __global__ void nan_as_unsigned(float* x) {
    x[threadIdx.x] = static_cast<unsigned>(sqrtf(-1.0f - x[threadIdx.x]));  // HERE
}

// Division: an integer divided by zero.
extern "C" __global__ void division_by_zero(int* x, int n) {
    x[threadIdx.x] = 100 / (n - static_cast<int>(threadIdx.x));  // HERE
}

// DivergentBarrier: half of the threads use one barrier, half another.
extern "C" __global__ void two_barriers(float* x) {
    if (threadIdx.x < 32) {
        x[threadIdx.x] = 1;
        __syncthreads();  // HERE
    } else {
        __syncthreads();  // HERE
        x[threadIdx.x] = 2;
    }
}

// DivergentBarrier: some threads have ended when the others wait.
extern "C" __global__ void early_return(float* x, int n) {
    if (threadIdx.x >= n) return;
    x[threadIdx.x] += 1;
    __syncthreads();  // HERE
    x[threadIdx.x] += x[0];
}

// DivergentBarrier: the number of rounds depends on the thread.
extern "C" __global__ void barrier_in_loop(float* x, int n) {
    for (int i = threadIdx.x; i < n; i += 32) {
        x[threadIdx.x] += i;
        __syncthreads();  // HERE
    }
}

// WarpMismatch: the mask names lanes that never come.
extern "C" __global__ void shuffle_of_ended_lanes(float* x, int n) {
    if (threadIdx.x >= n) return;
    x[threadIdx.x] = __shfl_down_sync(FULL, x[threadIdx.x], 1);  // HERE
}

// WarpMismatch: the calling lane is not in its mask.
extern "C" __global__ void lane_not_in_mask(float* x) {
    x[threadIdx.x] = __shfl_sync(0x0000ffffu, x[threadIdx.x], 0);  // HERE
}

// WarpMismatch: the halves of a warp take part in different shuffles.
extern "C" __global__ void different_shuffles(float* x) {
    float y = x[threadIdx.x];
    if (threadIdx.x % 2) y += __shfl_xor_sync(FULL, y, 2);  // HERE
    else y -= __shfl_down_sync(FULL, y, 2);                 // HERE
    x[threadIdx.x] = y;
}

// Deadlock: half of a warp waits in a shuffle, the other half in a barrier.
extern "C" __global__ void shuffle_against_barrier(float* x) {
    float y = x[threadIdx.x];
    if (threadIdx.x % 2) y += __shfl_xor_sync(FULL, y, 2);  // HERE
    else __syncthreads();                                   // HERE
    x[threadIdx.x] = y;
}

// Timeout: two blocks wait for each other; they may not run at the same time. GRID 2
extern "C" __global__ void wait_for_block(volatile int* x) {
    if (threadIdx.x > 0) return;
    x[blockIdx.x] = 1;
    while (x[1 - blockIdx.x] == 0) {  // HERE
    }
}

// Timeout: a thread waits by atomics for what no thread of its block writes.
extern "C" __global__ void wait_for_nobody(int* x) {
    if (threadIdx.x > 0) return;
    while (atomicAdd(x, 0) != 12345) {  // HERE
    }
}

// Race variable=x: a plain read beside atomics.
extern "C" __global__ void plain_read_beside_atomics(int* x) {
    int old = x[0], assumed;  // HERE
    do {
        assumed = old;
        old = atomicCAS(x, assumed, assumed + 1);  // HERE
    } while (old != assumed);
}

// Race variable=x: a volatile write that no atomic and no fence orders.
extern "C" __global__ void volatile_write_beside_reads(volatile float* x) {
    const float first = x[0];                         // HERE
    if (threadIdx.x % 32 == 17) x[0] = 2.0f + first;  // HERE
    x[threadIdx.x + 1] = first;
}

// MemoryFault: a null pointer is used.
extern "C" __global__ void null_pointer(const float* bias, float* x) {
    x[threadIdx.x] += bias[threadIdx.x];  // HERE
}

// AssertionFailed: an assertion of the kernel itself.
extern "C" __global__ void failed_assertion(float* x, int n) {
    assert(n % 4 == 0);  // HERE
    x[threadIdx.x] = n;
}

// ReadOnly variable=x: a write to an array that must not change.
extern "C" __global__ void write_to_input(const float* x, float* out) {
    const_cast<float*>(x)[threadIdx.x] = 0;  // HERE
    out[threadIdx.x] = 0;
}

// StackOverflow: local variables beyond a thread's stack.
extern "C" __global__ void large_local_array(float* x, int n) {  // HERE
    volatile float values[100000];
    values[n] = x[0];
    x[threadIdx.x] = values[n];
}
