// What the kernels of attention for sm_90a share: products of a warpgroup over tiles that a fourth
// of the block copies ahead.
//
// A block has two consumer warpgroups, which own 64 rows each, and a producer warpgroup. It stays
// on its multiprocessor and works on one block of OWN rows after the other; while the consumers
// finish one, the producer copies the next. A tile of some rows of two arrays goes through a ring
// of STAGES places; `full` and `empty` say whose a place is.
// Tiles get the layout that wgmma reads: 128-byte lines, swizzled. TMA chooses how they are copied,
// and nothing else: results are the same bit for bit.
// 0: by 128 threads, 16 bytes at a time (cp.async). What a thread copied it waits for itself and
//    then shows to the asynchronous proxy. Arrays are described by TensorMaps in the open.
// 1: by one thread, a box of 64 columns at a time (cp.async.bulk.tensor), by TensorMaps that the
//    driver made; the copy engine arrives at the barriers.
#pragma once
#include "attention.cuh"

#ifndef STAGES
#define STAGES 4
#endif
#ifndef TMA
#define TMA 0
#endif

constexpr int GROUP = 128;  // threads of a warpgroup
constexpr int CONSUMERS = 2, THREADS = GROUP * (CONSUMERS + 1);
constexpr int UNIT = 64, OWN = UNIT * CONSUMERS;  // rows
constexpr int STEPS = HEAD_DIM / 16, PANELS = HEAD_DIM / 64, CHUNKS = HEAD_DIM / 8;
constexpr bool BFLOAT16 = GPUGRAD_DTYPE == 1;
// Of a thread. A block has those it was launched with, 168 for each thread: to take more than the
// producers give would be to wait for ever.
constexpr int PRODUCER_REGISTERS = TMA ? 24 : 40, CONSUMER_REGISTERS = TMA ? 240 : 232;
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <=
              65536 / THREADS / 8 * 8 * (CONSUMERS + 1));
static_assert(HEAD_DIM % 64 == 0, "lines of 64 elements");

// The rows of one head, to write.
__device__ __forceinline__ Rows lines_of(T* x, int64_t batch_stride, int64_t head_stride,
                                         int64_t stride, int head, int heads) {
    return rows_of(x, batch_stride, head_stride, stride, head, heads, HEAD_DIM);
}

// ---- tiles of ROWS rows: panels of 64 columns, one behind the other, a line per row ----

template <int ROWS>
struct Panels {
    static constexpr int size = ROWS * HEAD_DIM, panel = ROWS * 128;  // elements, bytes
    __device__ __forceinline__ static T* at(T* tile, int row, int chunk) {
        return tile + chunk / 8 * (ROWS * 64) + row * 64 + 8 * ((chunk ^ row) % 8);
    }
    // The 16 columns from 16 * step as what is summed over: bytes from the start of a row.
    __device__ __forceinline__ static int columns(int step) {
        return step / 4 * panel + step % 4 * 32;
    }
    __device__ __forceinline__ static uint64_t tile(const T* start) {
        return wgmma_tile(start, 1024, panel);
    }
};
using Own = Panels<OWN>;

// sums = own rows times transposed other rows. The own rows are in registers or, if they would take
// too many, in shared memory.
template <bool HELD>
struct Operand {
    unsigned held[HELD ? STEPS : 1][4];
    uint64_t tile;

    // The 64 rows from `row` of a tile.
    __device__ __forceinline__ void take(T* own, int row) {
        if constexpr (HELD) {
            const int lane = threadIdx.x % WARP;
            const int mine = row + threadIdx.x % GROUP / WARP * 16 + lane % 16;
#pragma unroll
            for (int step = 0; step < STEPS; step++)
                ldmatrix_x4(held[step], Own::at(own, mine, 2 * step + lane / 16));
        } else {
            tile = Own::tile(own + row * 64);
        }
    }
    template <int SIZE>
    __device__ __forceinline__ void multiply(float (&sums)[SIZE], uint64_t other) const {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const uint64_t right = wgmma_advance(other, Panels<2 * SIZE>::columns(step));
            if constexpr (HELD)
                wgmma_registers<BFLOAT16, false>(sums, held[step], right, step > 0);
            else
                wgmma_shared<BFLOAT16, false, false>(
                    sums, wgmma_advance(tile, Own::columns(step)), right, step > 0);
        }
    }
};

// sums += weights times other rows
template <int COUNT>
__device__ __forceinline__ void add_products(float (&sums)[HEAD_DIM / 2],
                                             const unsigned (&weights)[COUNT][4], uint64_t other) {
#pragma unroll
    for (int step = 0; step < COUNT; step++)
        wgmma_registers<BFLOAT16, true>(sums, weights[step], wgmma_advance(other, 2048 * step),
                                        true);
}

// Scores as the left matrix of the next product, rounded.
template <int COUNT>
__device__ __forceinline__ void round_scores(unsigned (&weights)[COUNT][4],
                                             const float (&scores)[8 * COUNT]) {
#pragma unroll
    for (int step = 0; step < COUNT; step++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            weights[step][i] = pack(scores[8 * step + 2 * i], scores[8 * step + 2 * i + 1]);
}

// Where a thread's scores and sums lie: element i is in row(i / 2 % 2), column col(i).
__device__ __forceinline__ int row_of(int half) {
    return threadIdx.x % GROUP / WARP * 16 + threadIdx.x % WARP / 4 + 8 * half;
}
__device__ __forceinline__ int col_of(int i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2; }

// The 64 rows of a warpgroup to memory, `count` of them; `low` and `high` are the factors of a
// thread's two rows. Four lanes have 16 bytes of a row each in parts of four; they exchange them as
// in the transposition of a 4 by 4 matrix.
__device__ __forceinline__ void write_sums(const float (&sums)[HEAD_DIM / 2], float low, float high,
                                           const Rows& to, int first, int count) {
    const int quarter = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int part = 0; part < CHUNKS / 4; part++) {
            const float factor = half ? high : low;
            unsigned words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int n = (4 * part + i) * 4 + 2 * half;
                words[i] = pack(sums[n] * factor, sums[n + 1] * factor);
            }
#pragma unroll
            for (int bit = 1; bit <= 2; bit *= 2) {
                const bool high = quarter & bit;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (i & bit) continue;
                    const unsigned got =
                        __shfl_xor_sync(FULL, high ? words[i] : words[i + bit], bit);
                    words[i] = high ? got : words[i];
                    words[i + bit] = high ? words[i + bit] : got;
                }
            }
            const int row = row_of(half);
            if (row < count)
                *reinterpret_cast<uint4*>(to.at(first + row) + 8 * (4 * part + quarter)) =
                    make_uint4(words[0], words[1], words[2], words[3]);
        }
}

// ---- the ring ----

struct Barriers {
    uint64_t full[STAGES], empty[STAGES], own_full, own_empty;
};

// A warp arrives as one, behind all that its lanes did.
__device__ __forceinline__ void warp_arrive(uint64_t* barrier) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier_arrive(barrier);
}

// A place in the ring, and how often it came round.
struct Place {
    int stage;
    unsigned round;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, round ^= 1;
    }
};

// The producer's turns.
struct Turns {
    Barriers& barriers;
    Place place = {0, 0};
    unsigned own_round = 0;
    uint64_t* target = nullptr;  // the barrier that the next copies belong to

    // Until the own rows may be overwritten.
    __device__ __forceinline__ void wait_for_own() {
        mbarrier_wait(&barriers.own_empty, own_round ^ 1);
        own_round ^= 1;
        target = &barriers.own_full;
    }
    __device__ __forceinline__ void wait_for_place() {
        mbarrier_wait(&barriers.empty[place.stage], place.round ^ 1);
        target = &barriers.full[place.stage];
        place.next();
    }
};

// Who copies: the first `threads` of the producer warpgroup; `arrivals` at a barrier per hand-over.
// Both kinds are called alike: wait, copy, hand over what was copied since; and finish.
template <bool BY_MAP>
struct Producer;

// By cp.async: copies are handed over one step late, when they have arrived.
template <>
struct Producer<false> : Turns {
    static constexpr int threads = GROUP, arrivals = GROUP / WARP;
    uint64_t* under_way = nullptr;  // the barrier of the newest copies handed over

    // The rows of one head.
    struct Source {
        const char* start;
        int64_t stride;  // bytes
        int count;
    };
    __device__ __forceinline__ static Source rows(const TensorMap& x, int head, int heads) {
        return {x.start + head / heads * x.strides[3] + head % heads * x.strides[2], x.strides[1],
                static_cast<int>(x.lengths[1])};
    }
    // ROWS rows from `first` on, zeros for those that do not exist.
    template <int ROWS>
    __device__ __forceinline__ void copy(T* tile, const Source& from, int first) const {
        constexpr int step = GROUP / CHUNKS;  // a multiple of 8: the same place in a line
        const int row = threadIdx.x % GROUP / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const char* const begin = from.start + first * from.stride + 16 * chunk;
        const char* at = begin + row * from.stride;
        T* to = Panels<ROWS>::at(tile, row, chunk);
        int left = from.count - first - row;
#pragma unroll 1
        for (int i = 0; i < ROWS / step; i++) {
            cp_async_16(to, left > 0 ? at : begin, left > 0);
            at += step * from.stride;
            to += step * 64;
            left -= step;
        }
    }
    template <int COUNT>
    __device__ __forceinline__ void copy_numbers(float* to, const float* from) const {
        const int i = 4 * (threadIdx.x % GROUP);
        if (i < COUNT) cp_async_16(to + i, from + i);
    }
    __device__ __forceinline__ void hand_over() {
        cp_async_commit();
        if (under_way) {
            cp_async_wait<1>();
            fence_proxy_async();
            warp_arrive(under_way);
        }
        under_way = target;
    }
    __device__ __forceinline__ void finish() {
        if (!under_way) return;
        cp_async_wait<0>();
        fence_proxy_async();
        warp_arrive(under_way);
        under_way = nullptr;
    }
    // Consumers may need the newest tile before they are done with their own rows.
    __device__ __forceinline__ void wait_for_own() {
        finish();
        Turns::wait_for_own();
    }
};

// By the copy engine, which arrives with the bytes it has copied; one thread orders them.
template <>
struct Producer<true> : Turns {
    static constexpr int threads = 1, arrivals = 1;
    int bytes = 0;  // ordered since the last hand-over

    struct Source {
        const TensorMap* map;
        int head, batch;
    };
    __device__ __forceinline__ static Source rows(const TensorMap& x, int head, int heads) {
        return {&x, head % heads, head / heads};
    }
    template <int ROWS>
    __device__ __forceinline__ void copy(T* tile, const Source& from, int first) {
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++)
            cp_async_tensor(tile + panel * (ROWS * 64), from.map, 64 * panel, first, from.head,
                            from.batch, target);
        bytes += ROWS * HEAD_DIM * static_cast<int>(sizeof(T));
    }
    template <int COUNT>
    __device__ __forceinline__ void copy_numbers(float* to, const float* from) {
        cp_async_bulk(to, from, 4 * COUNT, target);
        bytes += 4 * COUNT;
    }
    __device__ __forceinline__ void hand_over() {
        mbarrier_arrive_expect(target, bytes);
        bytes = 0;
    }
    __device__ __forceinline__ void finish() {}
};

__device__ __forceinline__ void init_barriers(Barriers& barriers) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&barriers.full[i], Producer<TMA>::arrivals);
            mbarrier_init(&barriers.empty[i], CONSUMERS * GROUP / WARP);
        }
        mbarrier_init(&barriers.own_full, Producer<TMA>::arrivals);
        mbarrier_init(&barriers.own_empty, CONSUMERS * GROUP / WARP);
        fence_proxy_async();  // the copy engine arrives at them
    }
    __syncthreads();
}
