// Attention forward for sm_90a, by products of warpgroups (wgmma).
//
// The same as attention_forward.cu computes, for bfloat16 and float16, heads of HEAD_DIM = 64 or
// 128 elements, rows at multiples of 16 bytes, without dropout. q, k and v are (B, H, rows, D) as
// TensorMaps, with boxes of the rows of their tiles where TMA (attention_sm90.cuh).
// A block (384 threads, one to a multiprocessor) takes blocks of 128 queries `gridDim.x` apart, the
// longest first. A warpgroup owns 64 of them and walks over the keys they see, KEYS at a time, with
// its queries, the unnormalised result and the weights in registers. The product of the weights
// with v runs while the other warpgroup computes, and into the next scores of its own.
// Bytes: q and out once, k and v once per block of queries (mostly from the second-level cache).
// FLOPs: 4 B H Q K D, half of it with a causal mask.
//
// Run by the emulator only so far; tests/kernels/test_attention_sm90.py says what that leaves open.
#include "attention_sm90.cuh"

constexpr int KEYS = HEAD_DIM == 64 ? 128 : 64;  // rows of a tile
// Weights are 2 to the power of what a score lies above `top`, a former maximum of its row. It is
// replaced, and sums and results are scaled anew, only where the maximum has grown by so much.
constexpr float GROWTH = 8.0f;

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_forward_sm90(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
    const __grid_constant__ TensorMap v, T* out, float* lse, int64_t out_batch, int64_t out_head,
    int64_t out_row, int all_heads, int heads, int queries, int keys, int offset, int group,
    float scale) {
    using Others = Panels<KEYS>;
    __shared__ Barriers barriers;
    DYN_SMEM(memory);
    T* const own_q = reinterpret_cast<T*>(align_shared<1024>(memory));
    T* const tiles = own_q + Own::size;  // STAGES of keys and values
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
        const float rate = scale * LOG2E;
        Place place = {0, 0};
        unsigned own_round = 0;
        Operand<true> mine;
        unsigned weights[KEYS / 16][4];
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
            float sums[HEAD_DIM / 2], top[2] = {-INF, -INF}, total[2] = {0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = 0.0f;
            if (end) {
                mbarrier_wait(&barriers.own_full, own_round);
                own_round ^= 1;
                mine.take(own_q, own_row);
                warp_arrive(&barriers.own_empty);
                uint64_t* former = nullptr;  // the barrier of the place before this one
                int tile = 0;
#pragma unroll 1
                for (; tile * KEYS < seen_by_some; tile++, place.next()) {
                    const int first = tile * KEYS, stage = place.stage;
                    const T* const tile_k = tiles + stage * 2 * Others::size;
                    const uint64_t right_v = Others::tile(tile_k + Others::size);
                    float p[KEYS / 2];
                    mbarrier_wait(&barriers.full[stage], place.round);
                    wgmma_fence();
                    mine.multiply(p, Others::tile(tile_k));
                    wgmma_commit();
                    wgmma_wait<0>(p);  // and the product of the tile before
                    wgmma_hold(sums);
                    if (former) warp_arrive(former);
                    former = &barriers.empty[stage];

                    if (first + KEYS > seen_by_all) {
#pragma unroll
                        for (int i = 0; i < KEYS / 2; i++)
                            if (first + col_of(i) >=
                                visible(own_query + row_of(i / 2 % 2), offset, keys))
                                p[i] = -INF;
                    }
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        float highest = top[half];
#pragma unroll
                        for (int i = 2 * half; i < KEYS / 2; i += 4)
                            highest = fmaxf(highest, fmaxf(p[i], p[i + 1]));
                        highest = fmaxf(highest, __shfl_xor_sync(FULL, highest, 1));
                        highest = fmaxf(highest, __shfl_xor_sync(FULL, highest, 2));
                        // all lanes of a warp if one: it stays together
                        const bool grown = (highest - top[half]) * rate > GROWTH;
                        if (__any_sync(FULL, grown)) {
                            const float shrink =
                                grown ? exp2_approx((top[half] - highest) * rate) : 1.0f;
                            top[half] = grown ? highest : top[half];
                            total[half] *= shrink;
#pragma unroll
                            for (int i = 2 * half; i < HEAD_DIM / 2; i += 4)
                                sums[i] *= shrink, sums[i + 1] *= shrink;
                        }
                        // -inf - -inf would be NaN where nothing was seen yet; a NaN among the
                        // scores is not in `highest`, and reaches the result through its weight
                        const float base = top[half] == -INF ? 0.0f : top[half];
                        float shift = base * rate;
                        const bool far = !(fabsf(shift) < FAR);
                        if (__any_sync(FULL, far)) {  // then subtract before scaling
#pragma unroll
                            for (int i = 2 * half; i < KEYS / 2; i += 4) {
                                p[i] -= far ? base : 0.0f;
                                p[i + 1] -= far ? base : 0.0f;
                            }
                            shift = far ? 0.0f : shift;
                        }
#pragma unroll
                        for (int i = 2 * half; i < KEYS / 2; i += 4) {
                            p[i] = exp2_approx(fmaf(p[i], rate, -shift));
                            p[i + 1] = exp2_approx(fmaf(p[i + 1], rate, -shift));
                            total[half] += p[i] + p[i + 1];
                        }
                    }
                    round_scores(weights, p);
                    wgmma_fence();
                    add_products(sums, weights, right_v);
                    wgmma_commit();
                }
                wgmma_wait<0>(sums);
                if (former) warp_arrive(former);
                // tiles that none of the warpgroup's queries sees
                for (; tile < end; tile++, place.next()) {
                    mbarrier_wait(&barriers.full[place.stage], place.round);
                    warp_arrive(&barriers.empty[place.stage]);
                }
            }
            float factors[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float sum = total[half];
                sum += __shfl_xor_sync(FULL, sum, 1);
                sum += __shfl_xor_sync(FULL, sum, 2);
                factors[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
                const int query = own_query + row_of(half);
                if (threadIdx.x % 4 == 0 && query < queries)
                    lse[static_cast<int64_t>(head) * queries + query] =
                        sum == 0.0f ? INF : top[half] * scale + logf(sum);
            }
            write_sums(sums, factors[0], factors[1],
                       lines_of(out, out_batch, out_head, out_row, head, heads), own_query,
                       queries - own_query);
        }
    }
}
