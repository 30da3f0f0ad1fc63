"""Mutants that no test can notice, and why."""

from __future__ import annotations

# file, rule, text of the line, which of the mutants with these three
Key = tuple[str, str, str, int]

_PENDING = "after the last tile only q is on its way, where no key is seen and q is not read"
KERNELS: dict[Key, str] = {
    (
        "sort_ids.cu",
        "bound one too far",
        "for (int64_t at = first; at < end; at += TILE) {",
        0,
    ): "a tile without items has none to place",
    (
        "embedding.cu",
        "bound one too far",
        "if (!add && first < rows)",
        0,
    ): "each row is compared with rows again before it is written",
    (
        "softmax.cu",
        "bound one too far",
        "for (int64_t i = threadIdx.y; i < n; i += PARTS * AHEAD) {",
        0,
    ): "each element is compared with n again before it is touched",
    (
        "norm.cuh",
        "bound one too far",
        "for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < rows;",
        0,
    ): "a turn without rows has width 0: it reads nothing and adds zeros",
    (
        "common.cuh",
        "barrier removed",
        "__syncthreads();",
        1,
    ): "no kernel uses the scratch of block_sum a second time; it is for one that will",
    ("attention_forward.cu", "wait removed", "cp_async_wait<0>();", 1): _PENDING,
    ("attention_forward.cu", "waits for one copy less", "cp_async_wait<0>();", 1): _PENDING,
}

PYTHON: dict[Key, str] = {}
