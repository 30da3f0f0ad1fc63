"""Passing over large arrays in pieces that stay in the cache."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .. import backend, openblas
from ..backend import Array
from ..threads import for_rows

# Elements at a time. On the CPU a thread that comes back from a call of NumPy while another holds
# the interpreter lock sleeps for about as long as a call on 2^16 elements lasts; those of 2^18 stay
# in the caches as well, and leave less to wait for. On a GPU only the number of launches counts.
CPU_BLOCK = 1 << 18
GPU_BLOCK = 1 << 26
# Elements of a piece on the CPU, in the mean, below which threads wait for each other longer than
# they compute: one alone is faster.
SHORT = 1 << 16
# Elements of an array on the CPU that is worked on together with others: each call of NumPy lasts
# longer than the arithmetic on so few.
SMALL = 1 << 12
_LINE = 64  # bytes of a line of the cache, which an AVX-512 register fills


class Block(NamedTuple):
    """A piece of arrays of one shape: ``flat`` in C order of elements, ``rows`` of the arrays."""

    flat: slice
    rows: slice


def blocks(array: Array, parts: int = 1) -> tuple[Array, list[Block]]:
    """Return the array, flattened where a row of it is too long, and the pieces to visit.

    ``array[block.rows].reshape(-1)`` are the elements ``block.flat``: a view where the array is
    contiguous, else a copy of that piece only (a transposed weight's gradient, for example). Pieces
    are about equal, of so many parts of a CPU_BLOCK or GPU_BLOCK at most.
    """
    limit = (CPU_BLOCK if isinstance(array, np.ndarray) else GPU_BLOCK) // parts or 1
    if array.ndim == 0 or (array.size > limit * len(array) and array.flags.c_contiguous):
        array = array.reshape(-1)
    size = array.size
    if size == 0:
        return array, []
    count = len(array)
    if size <= limit:
        return array, [Block(slice(0, size), slice(0, count))]
    width = size // count
    rows = max(limit // width, 1)
    rows = -(-count // -(-count // rows))
    bounds = [*range(0, count, rows), count]
    return array, [
        Block(slice(start * width, stop * width), slice(start, stop))
        for start, stop in itertools.pairwise(bounds)
    ]


def for_pieces(pieces: Sequence[Array], work: Callable[[int], None]) -> None:
    """Call work(i) for every piece; on the CPU side by side, in groups of about CPU_BLOCK elements.

    The groups depend on the sizes alone. There is a single one where pieces are short in the mean.
    """
    here, bounds, elements = [], [0], 0
    for i, piece in enumerate(pieces):
        if not isinstance(piece, np.ndarray):
            work(i)
            continue
        here.append(i)
        elements += piece.size
        if elements >= CPU_BLOCK:
            bounds.append(len(here))
            elements = 0
    if elements:
        bounds.append(len(here))
    groups = len(bounds) - 1
    is_short = sum(pieces[i].size for i in here) < SHORT * len(here)

    def run(start: int, stop: int) -> None:
        for i in here[bounds[start] : bounds[stop]]:
            work(i)

    with openblas.serial:  # also for a single group
        for_rows(groups, run, max(groups, 1) if is_short else 1)


def scale(x: Array, factor: float, out: Array) -> None:
    """Write x times a factor to out: in float32 where the factor has all of its bits there.

    A factor of 1e-26 has no accurate value in float16, nor 1e-40 in float32.
    """
    xp = backend.xp_of(x)
    if x.dtype == out.dtype and x.dtype in (backend.float32, backend.float64) and factor > 1e-30:
        xp.multiply(x, factor, out=out)
    else:
        out[...] = xp.multiply(x, factor, dtype=backend.float64)


def add_scaled(xp: Any, x: Array, a: float, y: Array, b: float, room: Array) -> None:
    """Let y = a x + b y, 1-D arrays; ``room``, which may be x, is for what NumPy computes between.

    In one pass where that is OpenBLAS's (see there), else in three at most.
    """
    if xp is np and openblas.add_scaled(x, a, y, b):
        return
    if b != 1:
        y *= b
    y += x if a == 1 else xp.multiply(x, a, out=room)


class Scratch(threading.local):
    """Work arrays that every piece reuses: fresh pages can cost as much as the arithmetic.

    Each thread has its own.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[ModuleType, np.dtype], Array] = {}
        self._parts: dict[tuple[Any, ...], list[Array]] = {}  # of it, as asked for before

    def __deepcopy__(self, memo: dict[int, object]) -> Scratch:
        return Scratch()  # there is nothing in it that lasts

    def arrays(self, like: Array, count: int) -> list[Array]:
        """Return so many 1-D arrays of the length, dtype and library of ``like``.

        On the CPU they begin with a line of the cache.
        """
        xp, dtype, size = backend.xp_of(like), like.dtype, like.size
        parts = self._parts.get((xp, dtype, size, count))
        if parts is None:
            unit = _LINE // dtype.itemsize
            room = -(-size // unit) * unit
            memory = self._memory.get((xp, dtype))
            if memory is None or memory.size < count * room:
                memory = self._memory[xp, dtype] = aligned(xp, count * room, dtype)
                self._parts.clear()
            parts = [memory[i * room : i * room + size] for i in range(count)]
            self._parts[xp, dtype, size, count] = parts
        return parts


def aligned(xp: Any, size: int, dtype: np.dtype) -> Array:
    """Return a new 1-D array; on the CPU it begins with a line of the cache."""
    if xp is not np:
        return xp.empty(size, dtype)
    memory = np.empty(size + _LINE // dtype.itemsize, dtype)
    start = -memory.ctypes.data % _LINE // dtype.itemsize
    return memory[start : start + size]
