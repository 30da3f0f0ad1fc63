// Correct kernels of the usual kinds: the checked build must be silent on each, in every order.
#ifndef DYN_SMEM
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#endif
constexpr unsigned FULL = 0xffffffffu;

__device__ const float factors[4] = {1, 2, 3, 4};

__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL, x, offset);
    return x;
}

template <int THREADS>
__device__ float block_sum(float x) {
    __shared__ float scratch[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < THREADS / 32 ? scratch[threadIdx.x % 32] : 0.0f;
    x = warp_sum(x);
    __syncthreads();
    return x;
}

// out[0] = sum of x, out[1] = sum of x * factor
extern "C" __global__ void __launch_bounds__(128) reduction(const float* x, float* out, int n) {
    float total = 0, scaled = 0;
    for (int i = threadIdx.x; i < n; i += 128) total += x[i], scaled += x[i] * factors[i % 4];
    total = block_sum<128>(total);
    scaled = block_sum<128>(scaled);
    if (threadIdx.x == 0) out[0] = total, out[1] = scaled;
}

// out (columns, rows) = x (rows, columns), tiles of 32 by 32, blocks of 32 by 8 threads
extern "C" __global__ void transpose(const float* x, float* out, int rows, int columns) {
    __shared__ float tile[32][33];
    const int row = blockIdx.y * 32, col = blockIdx.x * 32;
    for (int i = threadIdx.y; i < 32; i += 8)
        if (row + i < rows && col + threadIdx.x < columns)
            tile[i][threadIdx.x] = x[(row + i) * columns + col + threadIdx.x];
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8)
        if (col + i < columns && row + threadIdx.x < rows)
            out[(col + i) * rows + row + threadIdx.x] = tile[threadIdx.x][i];
}

// inclusive sums over a block of at most 1024 threads, the last warp may be part of one
extern "C" __global__ void scan(const int* x, int* out, int n) {
    __shared__ int totals[32];
    const int i = threadIdx.x, lane = i % 32, warp = i / 32;
    const unsigned mask = __ballot_sync(FULL, i < n);
    int sum = 0;
    if (i < n) {
        sum = x[i];
        for (int offset = 1; offset < 32; offset *= 2) {
            const int left = __shfl_up_sync(mask, sum, offset);
            if (lane >= offset) sum += left;
        }
        if (lane == 31 || i == n - 1) totals[warp] = sum;
    }
    __syncthreads();
    for (int w = 0; w < warp; w++) sum += w * 32 < n ? totals[w] : 0;
    if (i < n) out[i] = sum;
}

// counts of bytes 0..15: in shared memory first, then into global memory
extern "C" __global__ void histogram(const uint8_t* x, int* out, int n) {
    __shared__ int bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&bins[x[i] % 16], 1);
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&out[threadIdx.x], bins[threadIdx.x]);
}

// sum over all blocks: the last block to finish adds the partial sums in order
extern "C" __global__ void last_block(const float* x, float* partial, unsigned* ticket, float* out,
                                      int n) {
    __shared__ bool last;
    float total = 0;
    for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) total += x[i];
    total = block_sum<128>(total);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = total;
        __threadfence();
        last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    total = 0;
    for (int i = threadIdx.x; i < gridDim.x; i += 128) total += partial[i];
    total = block_sum<128>(total);
    if (threadIdx.x == 0) *out = total;
}

// the same, where every thread writes and fences before the barrier
extern "C" __global__ void last_block_of_all(const float* x, float* partial, unsigned* ticket,
                                             float* out) {
    __shared__ bool last;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = 2 * x[threadIdx.x];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    float total = 0;
    for (int b = 0; b < gridDim.x; b++) total += partial[b * blockDim.x + threadIdx.x];
    out[threadIdx.x] = total;
}

// neighbouring threads write neighbouring bytes and half words of one word
extern "C" __global__ void narrow(const float* x, uint8_t* bytes, uint16_t* halves, float* out) {
    __shared__ uint8_t small[64];
    __shared__ uint16_t middle[64];
    const int i = threadIdx.x;
    small[i] = static_cast<uint8_t>(x[i]);
    middle[i] = static_cast<uint16_t>(x[i]);
    bytes[i] = static_cast<uint8_t>(i);
    halves[i] = static_cast<uint16_t>(i);
    __syncthreads();
    out[i] = small[63 - i] + middle[63 - i];
}

// 16 bytes at a time, through dynamic shared memory, in place
extern "C" __global__ void packed(float* x, int n) {
    DYN_SMEM(memory);
    float4* slots = reinterpret_cast<float4*>(memory);
    const int i = threadIdx.x;
    if (4 * i < n) slots[i] = *reinterpret_cast<const float4*>(x + 4 * i);
    __syncthreads();
    if (4 * i < n) {
        float4 v = slots[n / 4 - 1 - i];
        v.x += 1;
        *reinterpret_cast<float4*>(x + 4 * i) = v;
    }
}

// exchange inside warps, ordered by __syncwarp, in two halves with their own masks
extern "C" __global__ void warp_exchange(float* x) {
    __shared__ float tile[64];
    const int i = threadIdx.x;
    tile[i] = x[i];
    __syncwarp();
    float y = tile[i ^ 1];
    __syncwarp();
    const unsigned half = i % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    tile[i] = y;
    if (i % 32 < 16) {
        __syncwarp(half);
        y = tile[i ^ 3];
    } else {
        __syncwarp(half);
        y = -tile[i ^ 5];
    }
    x[i] = y;
}

// keep the positive values in order: votes, counts over the block
extern "C" __global__ void compact(const float* x, float* out, int* count, int n) {
    __shared__ int starts[2];
    const int i = threadIdx.x, lane = i % 32;
    const bool keep = i < n && x[i] > 0;
    const unsigned kept = __ballot_sync(FULL, keep);
    if (lane == 0) starts[i / 32] = __popc(kept);
    const int total = __syncthreads_count(keep);
    int start = i >= 32 ? starts[0] : 0;
    if (keep) out[start + __popc(kept & ((1u << lane) - 1))] = x[i];
    if (i == 0) *count = total;
    if (__any_sync(FULL, keep) && !__all_sync(FULL, keep) && lane == 0) atomicMax(count + 1, i + 1);
}

// one buffer read while the other is filled
extern "C" __global__ void double_buffer(const float* x, float* out, int rounds) {
    __shared__ float buffer[2][64];
    const int i = threadIdx.x;
    float total = 0;
    buffer[0][i] = x[i];
    for (int r = 0; r < rounds; r++) {
        __syncthreads();
        total += buffer[r % 2][63 - i];
        buffer[(r + 1) % 2][i] = x[i] + r + 1;
    }
    out[i] = total;
}

// no thread waits: a plain loop over a strided, three-dimensional grid
extern "C" __global__ void saxpy(float a, const float* x, float* y, long long n, bool negate) {
    const long long block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const long long i = block * blockDim.x * blockDim.y + threadIdx.y * blockDim.x + threadIdx.x;
    if (i < n) y[i] = (negate ? -a : a) * __ldg(x + i) + y[i];
}

// early exit of whole warps and of lanes, with no barrier or shuffle after it
extern "C" __global__ void early_exit(float* x, int n) {
    const int i = threadIdx.x;
    if (i >= n) return;
    const unsigned active = n - i / 32 * 32 >= 32 ? FULL : (1u << n % 32) - 1;
    x[i] = __reduce_max_sync(active, i) + __shfl_sync(active, x[i], 0);
    __syncwarp(active);
}

// inside a block: the warp that arrives last, by a ticket in shared memory, sums what all wrote
extern "C" __global__ void last_warp(const float* x, float* out) {
    __shared__ float partial[4];
    __shared__ int arrived;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x == 0) arrived = 0;
    __syncthreads();
    const float total = warp_sum(x[threadIdx.x]);
    int position = 0;
    if (lane == 0) {
        partial[warp] = total;
        __threadfence_block();
        position = atomicAdd(&arrived, 1);
    }
    position = __shfl_sync(FULL, position, 0);
    __syncwarp();
    if (position == 3 && lane == 0) *out = partial[0] + partial[1] + partial[2] + partial[3];
}

extern __shared__ float slots[];  // at file scope

__device__ float slot_of(int i) { return slots[i]; }

extern "C" __global__ void file_scope(float* x) {
    const int i = threadIdx.x, n = blockDim.x;
    reinterpret_cast<float4*>(slots)[i] = make_float4(x[i], 1, 2, 3);
    __syncthreads();
    x[i] = slot_of(4 * (n - 1 - i));
}

struct Candidate {
    double value;
    int index;  // and four bytes that nobody writes
};

// the largest value and its place: structs copied as a whole that were written by members
extern "C" __global__ void argmax(const double* x, int* out) {
    __shared__ Candidate best[64];
    const int i = threadIdx.x;
    best[i].value = x[i];
    best[i].index = i;
    for (int step = 32; step > 0; step /= 2) {
        __syncthreads();
        if (i < step && best[i + step].value > best[i].value) best[i] = best[i + step];
    }
    if (i == 0) *out = best[0].index;
}

// parts of a warp meet in the same shuffle, vote and fence, each at a line of its own
extern "C" __global__ void several_lines(float* x) {
    __shared__ float tile[32];
    const int i = threadIdx.x;
    float y = x[i];
    if (i % 2) y += __shfl_xor_sync(FULL, y, 1);
    else y -= __shfl_xor_sync(FULL, y, 1);
    unsigned votes;
    if (i < 16) votes = __ballot_sync(FULL, i < 8);
    else votes = __ballot_sync(FULL, i < 20);
    tile[i] = y + __popc(votes);
    if (i % 3) __syncwarp();
    else __syncwarp();
    x[i] = tile[i ^ 2];
}

// out[0] = the largest of x, by atomicCAS beside volatile reads
extern "C" __global__ void largest(const float* x, int* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int old = *(volatile int*)out, assumed;
    do {
        assumed = old;
        if (__int_as_float(assumed) >= x[i]) break;
        old = atomicCAS(out, assumed, __float_as_int(x[i]));
    } while (old != assumed);
}

__device__ int mutex;

// every thread adds 1 to out[0] behind a lock, which an atomic takes and a volatile write gives back
extern "C" __global__ void locked(int* out) {
    while (atomicCAS(&mutex, 0, 1)) {
    }
    __threadfence();
    const int before = out[0];
    __syncwarp(1u << threadIdx.x % 32);  // others of the warp wait for the lock meanwhile
    out[0] = before + 1;
    __threadfence();
    *(volatile int*)&mutex = 0;
}

// one warp fills a buffer, another empties it; each waits for the other's flag in a loop
extern "C" __global__ void producer_and_consumer(const float* x, float* out, int n) {
    __shared__ float buffer[32];
    __shared__ int filled, emptied;
    if (threadIdx.x == 0) filled = emptied = 0;
    __syncthreads();
    const int lane = threadIdx.x % 32;
    const bool produces = threadIdx.x < 32;
    for (int i = 0; i < n; i++) {
        while (atomicAdd(produces ? &emptied : &filled, 0) != (produces ? i : i + 1)) {
        }
        __syncwarp();
        if (produces) buffer[lane] = x[i * 32 + lane];
        else out[i * 32 + lane] = 2 * buffer[lane];
        __syncwarp();
        __threadfence_block();
        if (lane == 0) atomicAdd(produces ? &filled : &emptied, 1);
    }
}
