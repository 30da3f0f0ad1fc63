"""Launches of kernels/random.cu: one per draw, into a new array on a GPU or in the emulator.

Callers have checked that the blocks of a draw lie within the generator's 2**64; see ``philox``,
also for ``state``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from .. import backend, cuda
from ..cuda import recording

SOURCE = cuda.Source("random.cu", variants=cuda.variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)
THREADS = 256
PER_THREAD = 8  # blocks of words; enough to spread the cost of a thread in the emulator


def active(xp: ModuleType) -> bool:
    """Return whether kernels fill the arrays of this library now."""
    return xp is not np or cuda.emulated()


def grid(items: int, per_thread: int = PER_THREAD) -> tuple[int]:
    """Return the number of blocks of THREADS that loop over so many items, at least one."""
    return (min(-(-items // (THREADS * per_thread)), 2**31 - 1),)


def words(xp: ModuleType, seed: int, offset: int, n: int, state: Any) -> Any:
    """Return n words, uint32."""
    return _filled(xp, "random_words", backend.uint32, 4, (n, seed, offset, state))


def uniform(
    xp: ModuleType,
    seed: int,
    offset: int,
    n: int,
    state: Any,
    dtype: np.dtype,
    low: float = 0.0,
    width: float = 1.0,
    last: float = np.inf,
) -> Any:
    """Return low + width * u, at most ``last``, for uniform u on [0, 1), any floating dtype."""
    return _floats(xp, "random_uniform", dtype, (n, seed, offset, state, low, width, last))


def normal(
    xp: ModuleType,
    seed: int,
    offset: int,
    n: int,
    state: Any,
    dtype: np.dtype,
    loc: float = 0.0,
    scale: float = 1.0,
) -> Any:
    """Return loc + scale * z for standard normal z, any floating dtype."""
    return _floats(xp, "random_normal", dtype, (n, seed, offset, state, loc, scale))


def keep_mask(xp: ModuleType, seed: int, offset: int, n: int, state: Any, threshold: int) -> Any:
    """Return where words are at least the threshold, 0 to 2**32."""
    return _filled(xp, "random_keep_mask", backend.bool_, 4, (n, seed, offset, state, threshold))


def integers(
    xp: ModuleType, seed: int, offset: int, n: int, state: Any, low: int, high: int
) -> Any:
    """Return integers in [low, high), int64."""
    args = (n, seed, offset, state, low, high - low - 1)
    return _filled(xp, "random_integers", backend.int64, 2, args)


def _floats(xp: ModuleType, kernel: str, dtype: np.dtype, args: tuple) -> Any:
    if dtype == backend.float64:
        return _filled(xp, f"{kernel}_float64", dtype, 2, args)
    return _filled(xp, kernel, dtype, 4, args, cuda.dtype_code(dtype))


def _filled(
    xp: ModuleType, kernel: str, dtype: np.dtype, per_block: int, args: tuple, code: int = 0
) -> Any:
    """Return what a kernel makes: args[0] elements, so many per block of four words."""
    n = args[0]
    out = cuda.empty(n, dtype, like=xp.empty(0))
    if isinstance(out, recording.Buffer) and recording.current() is None:
        return out  # of a model without memory
    if n:
        blocks = grid(-(-n // per_block))
        SOURCE.launch(kernel, blocks, (THREADS,), (out, *args), GPUGRAD_DTYPE=code)
    return out
