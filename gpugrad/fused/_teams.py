"""How the kernels that include softmax.cuh are launched: a team of threads for every row."""

from __future__ import annotations

from typing import Any

from .. import cuda

PACK = 16  # bytes
RESERVED = 1 << 10  # bytes of shared memory for the kernel's own arrays and the system
EMULATED_SHARED = 227 << 10  # bytes of a block in the emulator, as on sm_90
# KiB of shared memory that a block can have, by compute capability: CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability"
_SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227}
_SHARED |= {120: 99, 121: 99}
_LEAST_SHARED = 99  # of any GPU that is newer


def teams(rows: int, columns: int) -> tuple[tuple[int], tuple[int, int]]:
    """Return grid and block: a warp for each of four short rows, else a block for one row."""
    if columns <= 1024:
        return (-(-rows // 4),), (32, 4)
    return (rows,), (128 if columns <= 8192 else 512, 1)


def room(columns: int, block: tuple[int, int], x: Any, kept: int = 1) -> tuple[int, int]:
    """Return how many packs of a row are kept in shared memory, and the bytes a block needs.

    All packs of a row or none; ``kept`` rows of the dtype of x for every row of the block.
    """
    packs = columns * x.dtype.itemsize // PACK
    size = packs * PACK * kept * block[1]
    return (packs, size) if size <= shared_limit(x) - RESERVED else (0, 0)


def shared_limit(x: Any) -> int:
    """Return how many bytes of shared memory a block can have where x is."""
    capability = cuda.capability(x)
    if capability == cuda.EMULATED:
        return EMULATED_SHARED
    return _SHARED.get(capability, _LEAST_SHARED) << 10
