// Random words as a pure function of (seed, block, word): Philox4x32-10 (Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011), bit for bit gpugrad/ops/philox.py. About 100
// instructions for four words.
#pragma once
#include "common.cuh"

// Where a draw begins. `state`, unless null, is {seed, offset} in device memory, and the offset
// given counts from there: the launches of a captured step are fixed, its draws are not.
__device__ __forceinline__ void locate(const uint64_t* state, uint64_t& seed, uint64_t& offset) {
    if (!state) return;
    seed = state[0];
    offset += state[1];
}

// The four words of one block: the key is the seed, the 128-bit counter the block, both low word
// first. Word i of a draw at block offset o is word i % 4 of block o + i / 4.
__device__ __forceinline__ void philox(uint64_t seed, uint64_t block, unsigned (&words)[4]) {
    unsigned key0 = static_cast<unsigned>(seed), key1 = static_cast<unsigned>(seed >> 32);
    unsigned c0 = static_cast<unsigned>(block), c1 = static_cast<unsigned>(block >> 32);
    unsigned c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0;
        const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
        c0 = static_cast<unsigned>(b >> 32) ^ c1 ^ key0;
        c1 = static_cast<unsigned>(b);
        c2 = static_cast<unsigned>(a >> 32) ^ c3 ^ key1;
        c3 = static_cast<unsigned>(a);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}
