// Tensor-core operations of a warp: ldmatrix and mma.m16n8k16, by the fragment layouts of the PTX
// ISA.
#include <cstdint>
#include <cstring>

#include "internal.hpp"

namespace gpugrad_emulator {

using Combine = void (*)(void* const* operands, uint32_t lanes);
EXPORT void collective(const char* op, uint32_t mask, void* operand, Combine combine, bool fence,
                       const char* file, int line);
EXPORT void range_access(const void* address, size_t size, bool write, const char* file, int line);

constexpr uint32_t FULL = 0xffffffffu;

static void whole_warp(const char* op, uint32_t lanes) {
    if (lanes == FULL) return;
    const Wait& wait = state.waits[state.current];
    fault(WARP_MISMATCH, state.current, {wait.file, wait.line, 0},
          "%s needs all 32 lanes of the warp; it has 0x%08x", op, lanes);
}

struct Matrices {
    const char* row;
    uint32_t* out;
    int count;
    bool transposed;
};

static uint16_t half_at(void* const* operands, int matrix, int row, int col) {
    uint16_t x;
    memcpy(&x, static_cast<Matrices*>(operands[8 * matrix + row])->row + 2 * col, sizeof x);
    return x;
}

// Lane 8 i + r points to row r of matrix i (8 by 8 halves). A lane gets two neighbours of a row:
// row lane / 4, columns 2 (lane % 4) and the next; of the transposed matrix if asked for.
EXPORT void load_matrices(uint32_t* out, const void* row, int count, bool transposed,
                          const char* file, int line) {
    const int lane = state.current % WARP;
    if (lane < 8 * count) {
        if (reinterpret_cast<uintptr_t>(row) % 16)
            fault(MISALIGNED, state.current, {file, line, 0},
                  "ldmatrix: the address of a row is not a multiple of 16");
        range_access(row, 16, false, file, line);
        want_shared("ldmatrix", row, 16, {file, line, 0});
    }
    uint32_t result[4] = {};
    Matrices operand{static_cast<const char*>(row), result, count, transposed};
    collective(
        "ldmatrix", FULL, &operand,
        [](void* const* operands, uint32_t lanes) {
            whole_warp("ldmatrix", lanes);
            for (int lane = 0; lane < WARP; lane++) {
                const Matrices& mine = *static_cast<Matrices*>(operands[lane]);
                const int row = lane / 4, col = lane % 4 * 2;
                for (int i = 0; i < mine.count; i++) {
                    const uint32_t low = mine.transposed ? half_at(operands, i, col, row)
                                                         : half_at(operands, i, row, col);
                    const uint32_t high = mine.transposed ? half_at(operands, i, col + 1, row)
                                                          : half_at(operands, i, row, col + 1);
                    mine.out[i] = high << 16 | low;
                }
            }
        },
        false, file, line);
    range_access(out, count * sizeof *out, true, file, line);
    memcpy(out, result, count * sizeof *out);
}

static float widen(uint32_t pair, int which, bool bfloat16) {
    const uint16_t half = static_cast<uint16_t>(pair >> 16 * which);
    if (bfloat16) {
        const uint32_t bits = uint32_t(half) << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    _Float16 x;
    memcpy(&x, &half, sizeof x);
    return static_cast<float>(x);
}

struct Mma {
    float* sums;
    const uint32_t *a, *b;
    bool bfloat16;
};

// Lane (g, t) = (lane / 4, lane % 4) holds of a: rows g and g + 8 at columns 2 t and 2 t + 8; of b:
// rows 2 t and 2 t + 8 of column g; of the sums: rows g and g + 8 at columns 2 t and 2 t + 1.
// Sums in double, rounded once: the hardware's own order and rounding are not documented.
EXPORT void mma_16x8x16(float* sums, const uint32_t* a, const uint32_t* b, bool bfloat16,
                        const char* file, int line) {
    float mine[4];
    uint32_t left[4], right[2];
    memcpy(mine, sums, sizeof mine);
    memcpy(left, a, sizeof left);
    memcpy(right, b, sizeof right);
    Mma operand{mine, left, right, bfloat16};
    collective(
        "mma.m16n8k16", FULL, &operand,
        [](void* const* operands, uint32_t lanes) {
            whole_warp("mma.m16n8k16", lanes);
            float left[16][16], right[16][8];
            for (int lane = 0; lane < WARP; lane++) {
                const Mma& m = *static_cast<Mma*>(operands[lane]);
                const int g = lane / 4, t = lane % 4;
                for (int i = 0; i < 8; i++) {
                    const int row = g + 8 * (i / 2 % 2), col = 2 * t + 8 * (i / 4) + i % 2;
                    left[row][col] = widen(m.a[i / 2], i % 2, m.bfloat16);
                }
                for (int i = 0; i < 4; i++)
                    right[2 * t + 8 * (i / 2) + i % 2][g] = widen(m.b[i / 2], i % 2, m.bfloat16);
            }
            for (int lane = 0; lane < WARP; lane++) {
                float* sums = static_cast<Mma*>(operands[lane])->sums;
                for (int i = 0; i < 4; i++) {
                    const int row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
                    double sum = sums[i];
                    for (int k = 0; k < 16; k++) sum += double(left[row][k]) * right[k][col];
                    sums[i] = static_cast<float>(sum);
                }
            }
        },
        false, file, line);
    range_access(sums, sizeof mine, true, file, line);
    memcpy(sums, mine, sizeof mine);
}

// Two floats as bfloat16 or float16, rounded to nearest even.
EXPORT uint32_t pack(float low, float high, bool bfloat16) {
    auto narrow = [bfloat16](float x) -> uint32_t {
        if (x != x) return 0x7fff;
        if (!bfloat16) {
            const _Float16 half = static_cast<_Float16>(x);
            uint16_t bits;
            memcpy(&bits, &half, sizeof bits);
            return bits;
        }
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    };
    return narrow(high) << 16 | narrow(low);
}

}  // namespace gpugrad_emulator
