// Gradients of scaled dot-product attention for sm_90a, by products of warpgroups (wgmma).
//
// The same as attention_backward.cu computes, for bfloat16 and float16, heads of HEAD_DIM = 64 or
// 128 elements, rows at multiples of 16 bytes, without dropout. q, k, v and g are (B, H, rows, D)
// as TensorMaps, with boxes of the rows of their tiles where TMA (attention_sm90.cuh). `stats` are
// those that attention_backward_rows writes there: lse and delta, padded to whole tiles of queries.
// attention_backward_sm90_keys: dk and dv (either may be null) of 128 keys at a time, through the
//   queries that see them, QUERIES at a time. FLOPs: 8 B H Q K D.
// attention_backward_sm90_queries: dq of 128 queries at a time, through the keys they see. FLOPs:
//   6 B H Q K D; s and g v^T are computed again, which costs 7 products for 5 but needs no matrix
//   in memory, no order of blocks and no atomics, so that dq is deterministic.
// Half the FLOPs with a causal mask. Bytes: own rows once, and once per block of own rows the other
// rows, from the second-level cache where the blocks of one head run together.
// A warpgroup owns 64 rows and computes scores with them as rows of the left matrix, so that p and
// ds are in registers where the next product takes them: nothing goes through shared memory but the
// tiles. Own rows stay in registers too, as far as they fit. While one warpgroup computes weights
// the other's products run, and its own newest ones.
// A block (384 threads, one to a multiprocessor) takes blocks of rows `gridDim.x` apart, the
// longest first. The order of all sums is fixed.
//
// Run by the emulator only so far, which copies boxes by their maps, reads tiles by their
// descriptors and sees missing waits, fences and barriers. tests/kernels/test_attention_sm90.py
// says what that leaves open.
#include "attention_sm90.cuh"

constexpr bool HOLD = HEAD_DIM == 64;  // keys, values and gradients of its own in registers
constexpr int QUERIES = HEAD_DIM == 64 ? 64 : 32, KEYS = 64;  // rows of a tile

// Of numbers in shared memory, one for each column of the scores, those of a thread's columns:
// element i of its scores is in column which(i) of them.
template <int COUNT>
__device__ __forceinline__ void load_columns(float (&mine)[COUNT], const float* columns) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
        const float2 pair = *reinterpret_cast<const float2*>(columns + col_of(2 * i));
        mine[i] = pair.x, mine[i + 1] = pair.y;
    }
}
__device__ __forceinline__ constexpr int which(int i) { return i / 4 * 2 + i % 2; }

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_backward_sm90_keys(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
    const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap g, const float* stats,
    T* dk, T* dv, int64_t dk_batch, int64_t dk_head, int64_t dk_row, int64_t dv_batch,
    int64_t dv_head, int64_t dv_row, int all_heads, int heads, int queries, int keys, int padded,
    int offset, int group, float scale) {
    using Others = Panels<QUERIES>;
    __shared__ Barriers barriers;
    DYN_SMEM(memory);
    T* const own_k = reinterpret_cast<T*>(align_shared<1024>(memory));
    T* const own_v = own_k + Own::size;
    T* const tiles = own_v + Own::size;  // STAGES of queries and gradients
    // lse and delta of the queries of each place
    float* const columns = reinterpret_cast<float*>(tiles + STAGES * 2 * Others::size);
    const int blocks = (keys + OWN - 1) / OWN, end = (queries + QUERIES - 1) / QUERIES;
    const int64_t works = static_cast<int64_t>(blocks) * all_heads;
    init_barriers(barriers);

    if (threadIdx.x >= CONSUMERS * GROUP) {
        registers_give<PRODUCER_REGISTERS>();
        if (threadIdx.x >= CONSUMERS * GROUP + Producer<TMA>::threads) return;
        Producer<TMA> producer{{barriers}};
#pragma unroll 1
        for (int64_t block = blockIdx.x; block < works; block += gridDim.x) {
            const Work work = work_of(block, blocks, all_heads, group);
            const int head = work.head, first_key = work.tile * OWN;
            const int begin = max(0, first_key - offset) / QUERIES;
            if (begin >= end) continue;
            producer.wait_for_own();
            producer.copy<OWN>(own_k, producer.rows(k, head, heads), first_key);
            producer.copy<OWN>(own_v, producer.rows(v, head, heads), first_key);
            producer.hand_over();
            const auto query = producer.rows(q, head, heads);
            const auto upstream = producer.rows(g, head, heads);
            const float* head_stats = stats + static_cast<int64_t>(head) * 2 * padded;
#pragma unroll 1
            for (int tile = begin; tile < end; tile++) {
                const int first = tile * QUERIES, stage = producer.place.stage;
                T* const at = tiles + stage * 2 * Others::size;
                float* const numbers = columns + stage * 2 * QUERIES;
                producer.wait_for_place();
                producer.copy<QUERIES>(at, query, first);
                producer.copy<QUERIES>(at + Others::size, upstream, first);
                producer.copy_numbers<QUERIES>(numbers, head_stats + first);
                producer.copy_numbers<QUERIES>(numbers + QUERIES, head_stats + padded + first);
                producer.hand_over();
            }
        }
        producer.finish();
    } else {
        registers_take<CONSUMER_REGISTERS>();
        const int own_row = threadIdx.x / GROUP * UNIT;
        Place place = {0, 0};
        unsigned own_round = 0;
        Operand<HOLD> mine_k, mine_v;
        unsigned weights[QUERIES / 16][4], changes[QUERIES / 16][4];  // p and ds, rounded
#pragma unroll 1
        for (int64_t block = blockIdx.x; block < works; block += gridDim.x) {
            const Work work = work_of(block, blocks, all_heads, group);
            const int head = work.head, own_key = work.tile * OWN + own_row;
            const int begin = max(0, own_key - own_row - offset) / QUERIES;
            float sums_k[HEAD_DIM / 2], sums_v[HEAD_DIM / 2];
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 2; i++) sums_k[i] = sums_v[i] = 0.0f;
            if (begin < end) {
                mbarrier_wait(&barriers.own_full, own_round);
                own_round ^= 1;
                mine_k.take(own_k, own_row);
                mine_v.take(own_v, own_row);
                if (HOLD) warp_arrive(&barriers.own_empty);
                // tiles that see none of the warpgroup's keys
                const int mine = own_key < keys ? max(0, own_key - offset) / QUERIES : end;
                int tile = begin;
                for (; tile < min(mine, end); tile++, place.next()) {
                    mbarrier_wait(&barriers.full[place.stage], place.round);
                    warp_arrive(&barriers.empty[place.stage]);
                }
                uint64_t* former = nullptr;  // the barrier of the place before this one
#pragma unroll 1
                for (; tile < end; tile++, place.next()) {
                    const int first = tile * QUERIES, stage = place.stage;
                    const T* const tile_q = tiles + stage * 2 * Others::size;
                    const uint64_t right_q = Others::tile(tile_q);
                    const uint64_t right_g = Others::tile(tile_q + Others::size);
                    float lse[QUERIES / 4], delta[QUERIES / 4];  // of the thread's columns
                    const float* const stats_of = columns + stage * 2 * QUERIES;
                    float p[QUERIES / 2], ds[QUERIES / 2];
                    mbarrier_wait(&barriers.full[stage], place.round);
                    wgmma_fence();
                    mine_k.multiply(p, right_q);
                    wgmma_commit();
                    mine_v.multiply(ds, right_g);
                    wgmma_commit();
                    wgmma_wait<1>(p);  // and the products of the tile before
                    if (former) warp_arrive(former);
                    former = &barriers.empty[stage];

                    bool any_far = false;
                    load_columns(lse, stats_of);
#pragma unroll
                    for (int i = 0; i < QUERIES / 4; i++) any_far |= is_far(lse[i]);
                    any_far = __any_sync(FULL, any_far);  // a warp stays together
                    if (any_far) {
#pragma unroll
                        for (int i = 0; i < QUERIES / 2; i++)
                            p[i] = weight(p[i], lse[which(i)], scale, true);
                    } else {
#pragma unroll
                        for (int i = 0; i < QUERIES / 2; i++)
                            p[i] = weight(p[i], lse[which(i)], scale, false);
                    }
                    if (first + offset < own_key + UNIT - 1) {
#pragma unroll
                        for (int i = 0; i < QUERIES / 2; i++)
                            if (own_key + row_of(i / 2 % 2) > first + col_of(i) + offset)
                                p[i] = 0.0f;
                    }
                    round_scores(weights, p);
                    wgmma_fence();
                    add_products(sums_v, weights, right_g);
                    wgmma_commit();
                    load_columns(delta, stats_of + QUERIES);
                    wgmma_wait<1>(ds);
#pragma unroll
                    for (int i = 0; i < QUERIES / 2; i++)
                        ds[i] = p[i] * (ds[i] - delta[which(i)]);
                    round_scores(changes, ds);
                    wgmma_fence();
                    add_products(sums_k, changes, right_q);
                    wgmma_commit();
                }
                wgmma_wait<0>(sums_k);
                wgmma_hold(sums_v);
                if (former) warp_arrive(former);
                if (!HOLD) warp_arrive(&barriers.own_empty);
            }
            if (dk)
                write_sums(sums_k, scale, scale,
                           lines_of(dk, dk_batch, dk_head, dk_row, head, heads), own_key,
                           keys - own_key);
            if (dv)
                write_sums(sums_v, 1.0f, 1.0f,
                           lines_of(dv, dv_batch, dv_head, dv_row, head, heads), own_key,
                           keys - own_key);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_backward_sm90_queries(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
    const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap g, const float* stats,
    T* dq, int64_t dq_batch, int64_t dq_head, int64_t dq_row, int all_heads, int heads,
    int queries, int keys, int padded, int offset, int group, float scale) {
    using Others = Panels<KEYS>;
    __shared__ Barriers barriers;
    DYN_SMEM(memory);
    T* const own_q = reinterpret_cast<T*>(align_shared<1024>(memory));
    T* const own_g = own_q + Own::size;
    T* const tiles = own_g + Own::size;  // STAGES of keys and values
    const int blocks = (queries + OWN - 1) / OWN;
    const int64_t works = static_cast<int64_t>(blocks) * all_heads;
    init_barriers(barriers);

    if (threadIdx.x >= CONSUMERS * GROUP) {
        registers_give<PRODUCER_REGISTERS>();
        if (threadIdx.x >= CONSUMERS * GROUP + Producer<TMA>::threads) return;
        Producer<TMA> producer{{barriers}};
#pragma unroll 1
        for (int64_t block = blockIdx.x; block < works; block += gridDim.x) {
            const Work work = work_of(block, blocks, all_heads, group);
            const int head = work.head, first_query = (blocks - 1 - work.tile) * OWN;
            const int last_query = min(queries, first_query + OWN) - 1;
            const int end = (visible(last_query, offset, keys) + KEYS - 1) / KEYS;
            if (end == 0) continue;
            producer.wait_for_own();
            producer.copy<OWN>(own_q, producer.rows(q, head, heads), first_query);
            producer.copy<OWN>(own_g, producer.rows(g, head, heads), first_query);
            producer.hand_over();
            const auto key = producer.rows(k, head, heads);
            const auto value = producer.rows(v, head, heads);
#pragma unroll 1
            for (int tile = 0; tile < end; tile++) {
                T* const at = tiles + producer.place.stage * 2 * Others::size;
                producer.wait_for_place();
                producer.copy<KEYS>(at, key, tile * KEYS);
                producer.copy<KEYS>(at + Others::size, value, tile * KEYS);
                producer.hand_over();
            }
        }
        producer.finish();
    } else {
        registers_take<CONSUMER_REGISTERS>();
        const int own_row = threadIdx.x / GROUP * UNIT;
        Place place = {0, 0};
        unsigned own_round = 0;
        Operand<true> mine_q;
        Operand<HOLD> mine_g;
        unsigned changes[KEYS / 16][4];  // ds, rounded
#pragma unroll 1
        for (int64_t block = blockIdx.x; block < works; block += gridDim.x) {
            const Work work = work_of(block, blocks, all_heads, group);
            const int head = work.head, first_query = (blocks - 1 - work.tile) * OWN;
            const int own_query = first_query + own_row;
            const int last_query = min(queries, first_query + OWN) - 1;
            const int end = (visible(last_query, offset, keys) + KEYS - 1) / KEYS;
            const int seen_by_some =
                own_query < queries ? visible(min(own_query + UNIT - 1, last_query), offset, keys)
                                    : 0;
            const int seen_by_all = visible(own_query, offset, keys);
            float sums[HEAD_DIM / 2];
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = 0.0f;
            float lse[2], delta[2];
            bool any_far = false;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                // a query past the last is no row of memory here; its sums are not written
                const int query = min(own_query + row_of(half), queries - 1);
                const float* at = stats + static_cast<int64_t>(head) * 2 * padded + query;
                lse[half] = at[0];
                delta[half] = at[padded];
                any_far |= is_far(lse[half]);
            }
            any_far = __any_sync(FULL, any_far);  // a warp stays together
            if (end) {
                mbarrier_wait(&barriers.own_full, own_round);
                own_round ^= 1;
                mine_q.take(own_q, own_row);
                mine_g.take(own_g, own_row);
                if (HOLD) warp_arrive(&barriers.own_empty);
                uint64_t* former = nullptr;  // the barrier of the place before this one
                int tile = 0;
#pragma unroll 1
                for (; tile * KEYS < seen_by_some; tile++, place.next()) {
                    const int first = tile * KEYS, stage = place.stage;
                    const T* const tile_k = tiles + stage * 2 * Others::size;
                    const uint64_t right_k = Others::tile(tile_k);
                    const uint64_t right_v = Others::tile(tile_k + Others::size);
                    float p[KEYS / 2], ds[KEYS / 2];
                    mbarrier_wait(&barriers.full[stage], place.round);
                    wgmma_fence();
                    mine_q.multiply(p, right_k);
                    wgmma_commit();
                    mine_g.multiply(ds, right_v);
                    wgmma_commit();
                    wgmma_wait<1>(p);  // and the product of the tile before
                    if (former) warp_arrive(former);
                    former = &barriers.empty[stage];

                    if (any_far) {
#pragma unroll
                        for (int i = 0; i < KEYS / 2; i++)
                            p[i] = weight(p[i], lse[i / 2 % 2], scale, true);
                    } else {
#pragma unroll
                        for (int i = 0; i < KEYS / 2; i++)
                            p[i] = weight(p[i], lse[i / 2 % 2], scale, false);
                    }
                    if (first + KEYS > seen_by_all) {
#pragma unroll
                        for (int i = 0; i < KEYS / 2; i++)
                            if (first + col_of(i) >=
                                visible(own_query + row_of(i / 2 % 2), offset, keys))
                                p[i] = 0.0f;
                    }
                    wgmma_wait<0>(ds);
#pragma unroll
                    for (int i = 0; i < KEYS / 2; i++)
                        ds[i] = p[i] * (ds[i] - delta[i / 2 % 2]);
                    round_scores(changes, ds);
                    wgmma_fence();
                    add_products(sums, changes, right_k);
                    wgmma_commit();
                }
                wgmma_wait<0>(sums);
                if (former) warp_arrive(former);
                if (!HOLD) warp_arrive(&barriers.own_empty);
                // tiles that none of the warpgroup's queries sees
                for (; tile < end; tile++, place.next()) {
                    mbarrier_wait(&barriers.full[place.stage], place.round);
                    warp_arrive(&barriers.empty[place.stage]);
                }
            }
            write_sums(sums, scale, scale,
                       lines_of(dq, dq_batch, dq_head, dq_row, head, heads), own_query,
                       queries - own_query);
        }
    }
}
